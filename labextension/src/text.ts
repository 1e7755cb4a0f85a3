/**
 * How a session is put into words. Nothing here needs a browser.
 */

/** A session as the server extension tells it; `age` is in seconds. */
export interface ISession {
  readonly id: string;
  readonly name: string;
  readonly status: string;
  readonly message: string;
  /** Sentences by slot, CPU and memory first. */
  readonly resources: Readonly<Record<string, string>>;
  readonly image: string;
  readonly resource_group: string;
  readonly project: string;
  readonly owner: string;
  readonly created_at: string;
  readonly age: number;
}

/** Translates a sentence, and fills `%1`, `%2` ... in. */
export interface ITranslate {
  __(sentence: string, ...values: unknown[]): string;
}

/** A duration in seconds: `< 1 min`, `12 min`, `3 h 4 min`, `2 d 3 h`. */
export function ageText(seconds: number, trans: ITranslate): string {
  const minutes = Math.floor(seconds / 60);
  if (minutes < 1) {
    return trans.__('< 1 min');
  }
  if (minutes < 60) {
    return trans.__('%1 min', minutes);
  }
  const hours = Math.floor(minutes / 60);
  if (hours < 24) {
    return trans.__('%1 h %2 min', hours, minutes % 60);
  }
  return trans.__('%1 d %2 h', Math.floor(hours / 24), hours % 24);
}

/** The resources in a row: `2 CPUs, 4 GiB of memory, 1 GPU`. */
export function resourcesText(session: ISession): string {
  return Object.values(session.resources).join(', ');
}

/** Titles and texts of the details, without those that are empty. */
export function detailRows(
  session: ISession,
  age: number,
  trans: ITranslate
): [string, string][] {
  const told = session.message.toLowerCase() === session.status.toLowerCase();
  const status =
    session.message && !told
      ? `${session.status}: ${session.message}`
      : session.status;
  const rows: [string, string][] = [
    [trans.__('Session'), session.name],
    [trans.__('Status'), status],
    [trans.__('Resources'), Object.values(session.resources).join('\n')],
    [trans.__('Age'), ageText(age, trans)],
    [trans.__('Image'), session.image],
    [trans.__('Resource group'), session.resource_group],
    [trans.__('Project'), session.project],
    [trans.__('Owner'), session.owner],
    [trans.__('Id'), session.id]
  ];
  return rows.filter(([, text]) => text !== '');
}

/** A problem as a sentence of its own. */
export function problemText(
  problem: string,
  known: boolean,
  trans: ITranslate
): string {
  const sentence = `${problem.charAt(0).toUpperCase()}${problem.slice(1)}.`;
  return known ? trans.__('Not up to date: %1', sentence) : sentence;
}
