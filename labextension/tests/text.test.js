// Words of the status bar: run by `jlpm test`, on what the compiler made of src/text.ts.

import assert from 'node:assert/strict';
import { test } from 'node:test';

import {
  ageText, detailRows, extendedText, leftText, problemText, resourcesText, warningText
} from '../lib/text.js';

const trans = {
  __: (sentence, ...values) =>
    sentence.replace(/%(\d)/g, (_, place) => values[Number(place) - 1])
};

const session = {
  id: 'c0ffee',
  name: 'ada-lab',
  status: 'RUNNING',
  message: '',
  resources: { cpu: '2 CPUs', mem: '4 GiB of memory', 'cuda.device': '1 GPU' },
  image: 'perijove/jupyterlab:latest',
  resource_group: '',
  project: 'default',
  owner: 'ada',
  created_at: '2026-01-01T00:00:00+00:00',
  age: 60
};

test('an age is told in two units at most', () => {
  const told = [0, 59.9, 60, 3599, 3600, 86_399, 86_400, 1_000_000].map(seconds =>
    ageText(seconds, trans)
  );
  assert.deepEqual(told, [
    '< 1 min', '< 1 min', '1 min', '59 min', '1 h 0 min', '23 h 59 min', '1 d 0 h', '11 d 13 h'
  ]);
});

test('resources keep their order', () => {
  assert.equal(resourcesText(session), '2 CPUs, 4 GiB of memory, 1 GPU');
});

test('details leave out what is empty', () => {
  const rows = detailRows(session, 75, null, trans);
  assert.deepEqual(rows.map(([title]) => title), [
    'Session', 'Status', 'Resources', 'Age', 'Image', 'Project', 'Owner', 'Id'
  ]);
  assert.equal(new Map(rows).get('Age'), '1 min');
  assert.equal(new Map(rows).get('Resources'), '2 CPUs\n4 GiB of memory\n1 GPU');
});

test('a message stands beside the status', () => {
  const rows = detailRows({ ...session, message: 'its node is away' }, 0, null, trans);
  assert.equal(new Map(rows).get('Status'), 'RUNNING: its node is away');
  const same = detailRows({ ...session, message: 'running' }, 0, 7300, trans);
  assert.equal(new Map(same).get('Time left'), '2 h 1 min');
  assert.equal(new Map(same).get('Status'), 'RUNNING');
});

test('a problem says whether what is shown is old', () => {
  assert.equal(problemText('no answer', true, trans), 'Not up to date: No answer.');
  assert.equal(problemText('no answer', false, trans), 'No answer.');
});

test('what is left is told by the second at last', () => {
  const told = [7300, 120, 119.9, 1, -3].map(seconds => leftText(seconds, trans));
  assert.deepEqual(told, ['2 h 1 min', '2 min', '119 s', '1 s', '0 s']);
});

test('a warning says when and why', () => {
  const warning = { check: 'utilization', message: 'it uses too little', ends_in: 800 };
  assert.equal(
    warningText(warning, 725, trans),
    'This session ends in 12 min: it uses too little.'
  );
});

test('who extended is told until when', () => {
  const now = new Date(2026, 0, 1, 12, 0);
  const soon = extendedText(3600, now, trans);
  assert.match(soon, /at least until (13:00|0?1:00\s?PM)\.$/);
  assert.match(extendedText(90_000, now, trans), /Jan.*2.*2026|2026.*1.*2|0?2.*0?1.*2026/);
  assert.equal(extendedText(null, now, trans), 'The session was extended.');
});
