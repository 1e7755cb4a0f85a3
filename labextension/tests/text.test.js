// Words of the status bar: run by `jlpm test`, on what the compiler made of src/text.ts.

import assert from 'node:assert/strict';
import { test } from 'node:test';

import { ageText, detailRows, problemText, resourcesText } from '../lib/text.js';

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
  const rows = detailRows(session, 75, trans);
  assert.deepEqual(rows.map(([title]) => title), [
    'Session', 'Status', 'Resources', 'Age', 'Image', 'Project', 'Owner', 'Id'
  ]);
  assert.equal(new Map(rows).get('Age'), '1 min');
  assert.equal(new Map(rows).get('Resources'), '2 CPUs\n4 GiB of memory\n1 GPU');
});

test('a message stands beside the status', () => {
  const rows = detailRows({ ...session, message: 'its node is away' }, 0, trans);
  assert.equal(new Map(rows).get('Status'), 'RUNNING: its node is away');
  const same = detailRows({ ...session, message: 'running' }, 0, trans);
  assert.equal(new Map(same).get('Status'), 'RUNNING');
});

test('a problem says whether what is shown is old', () => {
  assert.equal(problemText('no answer', true, trans), 'Not up to date: No answer.');
  assert.equal(problemText('no answer', false, trans), 'No answer.');
});
