/**
 * The status bar's item, and the details that it opens.
 */

import { type Popup, showPopup } from '@jupyterlab/statusbar';
import type { TranslationBundle } from '@jupyterlab/translation';
import type { Message } from '@lumino/messaging';
import { Widget } from '@lumino/widgets';

import type { SessionModel } from './model.js';
import { ageText, detailRows, problemText, resourcesText } from './text.js';

/** Milliseconds between looks at the clock, for the age. */
const TICK = 10_000;

/** A widget that shows the model: when it changes, and as time goes by. */
abstract class ModelWidget extends Widget {
  constructor(model: SessionModel, trans: TranslationBundle, node: HTMLElement) {
    super({ node });
    this.model = model;
    this.trans = trans;
    model.changed.connect(this.update, this);
  }

  override dispose(): void {
    if (!this.isDisposed) {
      this.model.changed.disconnect(this.update, this);
      super.dispose();
    }
  }

  protected override onAfterAttach(message: Message): void {
    super.onAfterAttach(message);
    this._timer = window.setInterval(() => this.update(), TICK);
    this.update();
  }

  protected override onBeforeDetach(message: Message): void {
    window.clearInterval(this._timer);
    super.onBeforeDetach(message);
  }

  protected readonly model: SessionModel;
  protected readonly trans: TranslationBundle;
  private _timer = 0;
}

/** All that is known about the session, as a list of titles and texts. */
export class SessionDetails extends ModelWidget {
  constructor(model: SessionModel, trans: TranslationBundle) {
    super(model, trans, document.createElement('div'));
    this.addClass('jp-PerijoveSession-details');
    this.node.setAttribute('role', 'group');
    this.node.tabIndex = -1; // takes the keyboard's focus, so that Escape closes what it lies in
    this.node.setAttribute('aria-label', trans.__('Session details'));
    this._show();
  }

  protected override onUpdateRequest(message: Message): void {
    super.onUpdateRequest(message);
    this._show();
  }

  private _show(): void {
    const { session, problem, age, left } = this.model;
    const parts: HTMLElement[] = [];
    if (session !== null) {
      const list = document.createElement('dl');
      for (const [title, text] of detailRows(session, age, left, this.trans)) {
        list.append(element('dt', title), element('dd', text));
      }
      parts.push(list);
    }
    if (problem !== null) {
      const known = session !== null;
      const sentence = problemText(problem, known, this.trans);
      parts.push(element('p', sentence, 'jp-PerijoveSession-problem'));
    }
    this.node.replaceChildren(...parts);
  }
}

/** Name, resources and age in the status bar; opens the details. */
export class SessionItem extends ModelWidget {
  constructor(model: SessionModel, trans: TranslationBundle) {
    super(model, trans, document.createElement('div'));
    this.addClass('jp-PerijoveSession');
    this.addClass('jp-mod-highlighted');
    this.node.setAttribute('role', 'button');
    this.node.setAttribute('aria-haspopup', 'dialog');
    this.node.tabIndex = 0;
    this.node.append(this._name, this._resources, this._age);
  }

  /** Open the details, or close them if they are open. */
  toggle(): void {
    if (this._popup !== null) {
      this._popup.dispose();
      return;
    }
    const details = new SessionDetails(this.model, this.trans);
    const popup = showPopup({
      body: details,
      anchor: this,
      align: 'left',
      hasDynamicSize: true
    });
    popup.disposed.connect(() => {
      this._popup = null;
      this.removeClass('jp-mod-clicked');
      if (document.activeElement === document.body) {
        this.node.focus(); // which the details took with them
      }
    });
    details.node.focus();
    this.addClass('jp-mod-clicked');
    this._popup = popup;
    void this.model.refresh();
  }

  handleEvent(event: Event): void {
    if (event instanceof KeyboardEvent) {
      if (event.key !== 'Enter' && event.key !== ' ') {
        return;
      }
      event.preventDefault();
    }
    this.toggle();
  }

  override dispose(): void {
    this._popup?.dispose();
    super.dispose();
  }

  protected override onAfterAttach(message: Message): void {
    super.onAfterAttach(message);
    this.node.addEventListener('click', this);
    this.node.addEventListener('keydown', this);
  }

  protected override onBeforeDetach(message: Message): void {
    this.node.removeEventListener('click', this);
    this.node.removeEventListener('keydown', this);
    super.onBeforeDetach(message);
  }

  protected override onUpdateRequest(message: Message): void {
    super.onUpdateRequest(message);
    const { session, problem, age } = this.model;
    this.toggleClass('jp-mod-problem', problem !== null);
    const unknown = this.trans.__('Session unknown');
    this._name.textContent = session?.name ?? unknown;
    this._resources.textContent = session === null ? '' : resourcesText(session);
    this._age.textContent = session === null ? '' : ageText(age, this.trans);
    this.node.title =
      problem === null
        ? this.trans.__('This session: click for details')
        : problemText(problem, session !== null, this.trans);
  }

  private readonly _name = element('span', '', 'jp-PerijoveSession-name');
  private readonly _resources = element('span', '');
  private readonly _age = element('span', '');
  private _popup: Popup | null = null;
}

function element(tag: string, text: string, name = ''): HTMLElement {
  const node = document.createElement(tag);
  node.textContent = text;
  node.className = name;
  return node;
}
