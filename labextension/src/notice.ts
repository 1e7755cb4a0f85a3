/**
 * The notification ahead of the session's end, with the seconds that are left and a button that extends it.
 */

import { Notification } from '@jupyterlab/apputils';
import type { TranslationBundle } from '@jupyterlab/translation';
import type { IDisposable } from '@lumino/disposable';

import type { SessionModel } from './model.js';
import { extendedText, problemText, warningText } from './text.js';

/** Milliseconds between looks at the clock, and for which the outcome of an extension stays. */
const TICK = 1000;
const NEWS = 15_000;
/** Seconds before the end at which a notification that was hidden is shown once more. */
const LAST_CALL = 60;

/** Warns of the end that the model knows of. */
export class EndNotice implements IDisposable {
  constructor(model: SessionModel, trans: TranslationBundle) {
    this._model = model;
    this._trans = trans;
    model.changed.connect(this._look, this);
  }

  get isDisposed(): boolean {
    return this._disposed;
  }

  dispose(): void {
    if (!this._disposed) {
      this._disposed = true;
      this._model.changed.disconnect(this._look, this);
      this._withdraw();
    }
  }

  private _look(): void {
    const warning = this._model.session?.warning ?? null;
    if (warning === null) {
      this._withdraw();
    } else if (this._timer === 0) {
      this._text = '';
      this._lastCall = false;
      this._timer = window.setInterval(() => this._tell(), TICK);
      this._tell();
    }
  }

  /** Say how long is left, if that reads differently now. */
  private _tell(): void {
    const warning = this._model.session?.warning ?? null;
    const left = this._model.warnedLeft;
    if (warning === null || left === null || this._extending) {
      return;
    }
    const text = warningText(warning, left, this._trans);
    if (text === this._text) {
      return;
    }
    this._text = text;
    const actions = [
      {
        label: this._trans.__('Extend'),
        caption: this._trans.__('Keep this session from ending, as far as your policy allows'),
        displayType: 'accent' as const,
        callback: (event: MouseEvent) => {
          event.preventDefault(); // which keeps the notification: it tells what became of it
          void this._extend();
        }
      }
    ];
    if (this._id === '') {
      this._id = Notification.warning(text, { actions, autoClose: false });
      return;
    }
    // JupyterLab shows a notification that was hidden again when it is updated; 0 keeps it hidden.
    const last = left <= LAST_CALL && !this._lastCall;
    this._lastCall ||= last;
    const hidden = document.getElementById(this._id) === null && !last;
    Notification.update({
      id: this._id,
      message: text,
      type: 'warning',
      actions,
      autoClose: hidden ? 0 : false
    });
  }

  private async _extend(): Promise<void> {
    if (this._extending) {
      return;
    }
    this._extending = true;
    const id = this._id;
    this._id = ''; // no longer a warning: the end of the warning leaves it
    const outcome = { id, actions: [], autoClose: NEWS };
    try {
      const left = await this._model.extend();
      const message = extendedText(left, new Date(), this._trans);
      Notification.update({ ...outcome, message, type: 'success' });
    } catch (error) {
      const reason = error instanceof Error ? error.message : String(error);
      const sentence = problemText(reason, false, this._trans);
      const message = this._trans.__('The session was not extended. %1', sentence);
      Notification.update({ ...outcome, message, type: 'error' });
      this._text = ''; // the warning stands, in a notification of its own
    } finally {
      this._extending = false;
    }
  }

  private _withdraw(): void {
    window.clearInterval(this._timer);
    this._timer = 0;
    if (this._id !== '') {
      Notification.dismiss(this._id);
      this._id = '';
    }
  }

  private readonly _model: SessionModel;
  private readonly _trans: TranslationBundle;
  private _disposed = false;
  private _extending = false;
  private _id = '';
  private _lastCall = false;
  private _text = '';
  private _timer = 0;
}
