/** The session as the server extension tells it, and the text of its age. */

import { URLExt } from '@jupyterlab/coreutils';
import { ServerConnection } from '@jupyterlab/services';
import type { TranslationBundle } from '@jupyterlab/translation';

export interface Resource {
  readonly slot: string;
  readonly amount: string;
  readonly text: string;
}

export interface Session {
  readonly id: string;
  readonly name: string;
  readonly status: string;
  readonly message: string;
  readonly image: string;
  readonly resource_group: string;
  readonly project: string;
  readonly created_at: string;
  /** Seconds, when the answer was given. */
  readonly age: number;
  readonly summary: string;
  readonly resources: readonly Resource[];
}

export interface Problem {
  readonly code: string;
  readonly message: string;
}

export interface Answer {
  readonly session: Session | null;
  readonly problem: Problem | null;
}

/** Ask the server extension; what goes wrong becomes a problem in the answer. */
export async function fetchSession(
  settings: ServerConnection.ISettings,
  trans: TranslationBundle,
  signal: AbortSignal
): Promise<Answer> {
  const url = URLExt.join(settings.baseUrl, 'perijove', 'session');
  try {
    const response = await ServerConnection.makeRequest(url, { signal }, settings);
    const body = (await response.json()) as Partial<Answer>;
    if (body.session || body.problem) {
      return { session: body.session ?? null, problem: body.problem ?? null };
    }
    const message = trans.__('The Jupyter server answered with status %1.', response.status);
    return { session: null, problem: { code: 'away', message } };
  } catch (error) {
    if (signal.aborted) {
      throw error;
    }
    const message = trans.__('The Jupyter server does not answer.');
    return { session: null, problem: { code: 'away', message } };
  }
}

/** An age in the two largest units. */
export function ageText(seconds: number, trans: TranslationBundle): string {
  const whole = Math.max(0, Math.floor(seconds));
  const minutes = Math.floor(whole / 60);
  const hours = Math.floor(minutes / 60);
  if (minutes === 0) {
    return trans.__('%1 s', whole);
  }
  if (hours === 0) {
    return trans.__('%1 min', minutes);
  }
  if (hours < 24) {
    return trans.__('%1 h %2 min', hours, minutes % 60);
  }
  return trans.__('%1 d %2 h', Math.floor(hours / 24), hours % 24);
}
