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
  /** Seconds until the first of its limits; null where it has none. */
  readonly ends_in: number | null;
  /** What its owner was warned of. */
  readonly warning: IWarning | null;
}

/** A session ends in so many seconds by a check of its owner's policy. */
export interface IWarning {
  readonly check: string;
  /** Why, as half a sentence. */
  readonly message: string;
  readonly ends_in: number;
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

/** What is left of a time in seconds: by the second when it is short. */
export function leftText(seconds: number, trans: ITranslate): string {
  const left = Math.max(Math.floor(seconds), 0);
  return left < 120 ? trans.__('%1 s', left) : ageText(left, trans);
}

/** The warning as people read it, `left` seconds before the end. */
export function warningText(warning: IWarning, left: number, trans: ITranslate): string {
  return trans.__('This session ends in %1: %2.', leftText(left, trans), trans.__(warning.message));
}

/** What became of a session that was extended: it ends in `left` seconds, or not by itself. */
export function extendedText(left: number | null, now: Date, trans: ITranslate): string {
  if (left === null) {
    return trans.__('The session was extended.');
  }
  const end = new Date(now.getTime() + left * 1000);
  const sameDay = end.toDateString() === now.toDateString();
  const when = sameDay
    ? end.toLocaleTimeString([], { timeStyle: 'short' })
    : end.toLocaleString([], { dateStyle: 'medium', timeStyle: 'short' });
  return trans.__('The session was extended: it goes on at least until %1.', when);
}

/** The resources in a row: `2 CPUs, 4 GiB of memory, 1 GPU`. */
export function resourcesText(session: ISession): string {
  return Object.values(session.resources).join(', ');
}

/** Titles and texts of the details, without those that are empty. */
export function detailRows(
  session: ISession,
  age: number,
  left: number | null,
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
    [trans.__('Time left'), left === null ? '' : leftText(left, trans)],
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
