/**
 * What is known about the session, kept up to date while the page can be seen.
 */

import { URLExt } from '@jupyterlab/coreutils';
import { ServerConnection } from '@jupyterlab/services';
import type { IDisposable } from '@lumino/disposable';
import { Poll } from '@lumino/polling';
import { type ISignal, Signal } from '@lumino/signaling';

import type { ISession } from './text.js';

/** Milliseconds between questions to the server, and the most when it does not answer. */
const INTERVAL = 30_000;
const LONGEST = 300_000;
/** Seconds before the end from which it asks more often, and how often then. */
const NEAR = 120;
const NEAR_INTERVAL = 5_000;

/** The answer of `GET /perijove/session`. */
interface IAnswer {
  readonly session: ISession | null;
  readonly problem: string | null;
}

/** The session of this page. */
export class SessionModel implements IDisposable {
  constructor(settings: ServerConnection.ISettings) {
    this._settings = settings;
    this._poll = new Poll({
      name: 'perijove-lab:session',
      factory: () => this._ask(),
      frequency: { interval: INTERVAL, backoff: true, max: LONGEST },
      standby: 'when-hidden'
    });
  }

  /** Emitted when something else is known. */
  get changed(): ISignal<this, void> {
    return this._changed;
  }

  /** The session as it was told last; null when nothing is known. */
  get session(): ISession | null {
    return this._session;
  }

  /** Why nothing (newer) is known; null when all is well. */
  get problem(): string | null {
    return this._problem;
  }

  /** Whether there should be a session of which nothing is known yet. */
  get missing(): boolean {
    return this._missing;
  }

  /** Seconds since the session was asked for, as of now. */
  get age(): number {
    const told = this._session?.age ?? 0;
    return told + (performance.now() - this._toldAt) / 1000;
  }

  /** Seconds until the first of its limits ends it, as of now; null where it has none. */
  get left(): number | null {
    return this._later(this._session?.ends_in);
  }

  /** Seconds until the end that its owner was warned of, as of now; null without a warning. */
  get warnedLeft(): number | null {
    return this._later(this._session?.warning?.ends_in);
  }

  get isDisposed(): boolean {
    return this._poll.isDisposed;
  }

  /** Ask now. */
  refresh(): Promise<void> {
    return this._poll.refresh();
  }

  /** Keep the session from ending: seconds until it does at the earliest, null for never. */
  async extend(): Promise<number | null> {
    const url = URLExt.join(this._settings.baseUrl, 'perijove', 'extend');
    const response = await ServerConnection.makeRequest(url, { method: 'POST' }, this._settings);
    const answer = (await response.json()) as { ends_in?: number | null; message?: string };
    if (!response.ok) {
      throw new Error(answer.message ?? response.statusText);
    }
    const left = answer.ends_in ?? null;
    if (this._session !== null) {
      // The age as of now: it shares its clock with what is left.
      const told = { ...this._session, age: this.age, ends_in: left, warning: null };
      this._take({ session: told, problem: this._problem });
    }
    void this.refresh();
    return left;
  }

  dispose(): void {
    if (!this.isDisposed) {
      this._poll.dispose();
      Signal.clearData(this);
    }
  }

  private _later(seconds: number | null | undefined): number | null {
    const since = (performance.now() - this._toldAt) / 1000;
    return seconds === null || seconds === undefined ? null : seconds - since;
  }

  private async _ask(): Promise<void> {
    const url = URLExt.join(this._settings.baseUrl, 'perijove', 'session');
    try {
      const response = await ServerConnection.makeRequest(
        url,
        {},
        this._settings
      );
      if (!response.ok) {
        throw await ServerConnection.ResponseError.create(response);
      }
      const answer = (await response.json()) as IAnswer;
      this._missing = false;
      this._take(answer);
      const near = (answer.session?.ends_in ?? Infinity) < NEAR;
      const interval = near ? NEAR_INTERVAL : INTERVAL;
      if (interval !== this._poll.frequency.interval) {
        this._poll.frequency = { interval, backoff: true, max: LONGEST };
      }
      if (answer.session === null) {
        // Not in a session of Perijove: that does not change while the server runs.
        void this._poll.stop();
      }
    } catch (error) {
      const problem = error instanceof Error ? error.message : String(error);
      this._missing = this._session === null;
      this._take({ session: this._session, problem });
      throw error; // so that the poll asks less and less often
    }
  }

  private _take(answer: IAnswer): void {
    if (this.isDisposed) {
      return;
    }
    if (answer.session !== this._session) {
      this._toldAt = performance.now();
    }
    this._session = answer.session;
    this._problem = answer.problem;
    this._changed.emit();
  }

  private readonly _settings: ServerConnection.ISettings;
  private readonly _poll: Poll<void>;
  private readonly _changed = new Signal<this, void>(this);
  private _session: ISession | null = null;
  private _problem: string | null = null;
  private _missing = false;
  private _toldAt = 0;
}
