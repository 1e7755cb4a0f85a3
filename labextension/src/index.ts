/**
 * Shows the session that JupyterLab runs in: its name, resources and age, and warns before it ends.
 */

import type {
  JupyterFrontEnd,
  JupyterFrontEndPlugin
} from '@jupyterlab/application';
import { Dialog, ICommandPalette } from '@jupyterlab/apputils';
import { IStatusBar } from '@jupyterlab/statusbar';
import { ITranslator, nullTranslator } from '@jupyterlab/translation';
import { DisposableSet } from '@lumino/disposable';

import { SessionModel } from './model.js';
import { EndNotice } from './notice.js';
import { SessionDetails, SessionItem } from './widgets.js';

/** The command that shows the details. */
const SHOW = 'perijove:show-session';

let active: DisposableSet | null = null;

const plugin: JupyterFrontEndPlugin<void> = {
  id: 'perijove-lab:session',
  description: 'Shows the name, the resources and the age of the session, and warns before it ends.',
  autoStart: true,
  // Notebook 7 has no status bar: there, the command opens a dialog.
  optional: [IStatusBar, ICommandPalette, ITranslator],
  activate: (
    app: JupyterFrontEnd,
    statusBar: IStatusBar | null,
    palette: ICommandPalette | null,
    translator: ITranslator | null
  ): void => {
    const trans = (translator ?? nullTranslator).load('perijove');
    const model = new SessionModel(app.serviceManager.serverSettings);
    const disposables = DisposableSet.from([model, new EndNotice(model, trans)]);
    active = disposables;

    let item: SessionItem | null = null;
    if (statusBar !== null) {
      item = new SessionItem(model, trans);
      disposables.add(item);
      disposables.add(
        statusBar.registerStatusItem('perijove-lab:session', {
          item,
          align: 'left',
          rank: 10,
          isActive: () => known(model),
          activeStateChanged: model.changed
        })
      );
    }

    disposables.add(
      app.commands.addCommand(SHOW, {
        label: trans.__('Show This Session'),
        caption: trans.__('Show the name, the resources and the age of this session'),
        isVisible: () => known(model),
        describedBy: { args: { type: 'object', properties: {} } },
        execute: async () => {
          if (item?.isVisible) {
            item.toggle();
            return;
          }
          const dialog = new Dialog({
            title: trans.__('This Session'),
            body: new SessionDetails(model, trans),
            buttons: [Dialog.okButton({ label: trans.__('Close') })]
          });
          await dialog.launch();
        }
      })
    );
    model.changed.connect(() => app.commands.notifyCommandChanged(SHOW));
    if (palette !== null) {
      disposables.add(
        palette.addItem({ command: SHOW, category: trans.__('Session') })
      );
    }
  },
  deactivate: (): void => {
    active?.dispose();
    active = null;
  }
};

/** Whether there is something to show: a session, or one that should be there but is not known. */
function known(model: SessionModel): boolean {
  return model.session !== null || model.missing;
}

export default plugin;
