'use strict';
const { HOST, PORT, report, check, equal, until, restart, main, range, versionOf } = require('checks');
const Queue = require('bull');

const make = (name, settings = {}) => {
  const queue = new Queue(name, { redis: { host: HOST, port: PORT }, prefix: '{bull}', settings });
  queue.on('error', () => {});
  return queue;
};

main(async () => {
  report('bull', versionOf('bull'));

  await check('jobs, results and events', async () => {
    const queue = make('work');
    const other = make('work');
    const seen = [];
    other.on('global:completed', (id, result) => seen.push(JSON.parse(result)));
    await other.isReady();
    queue.process(5, async (job) => job.data.n * 2);
    const jobs = await queue.addBulk(range(40).map((n) => ({ data: { n } })));
    equal(await Promise.all(jobs.map((job) => job.finished())), range(40).map((n) => 2 * n));
    await until(() => seen.length === 40, 'events at the other process');
    equal(seen.sort((a, b) => a - b), range(40).map((n) => 2 * n));
    equal((await queue.getJobCounts()).completed, 40);
    await Promise.all([queue.close(), other.close()]);
  });

  await check('retries with backoff, failures', async () => {
    const queue = make('retry');
    const tries = {};
    queue.process('*', async (job) => {
      tries[job.name] = (tries[job.name] || 0) + 1;
      if (job.name === 'never' || tries[job.name] < 3) throw new Error('not yet');
      return tries[job.name];
    });
    const flaky = await queue.add('flaky', {}, { attempts: 3, backoff: { type: 'fixed', delay: 50 } });
    const never = await queue.add('never', {}, { attempts: 2, backoff: 20 });
    equal(await flaky.finished(), 3);
    await never.finished().then(() => { throw new Error('it did not fail'); }, (error) => equal(error.message, 'not yet'));
    equal(tries, { flaky: 3, never: 2 });
    await queue.close();
  });

  await check('delays and priorities', async () => {
    const queue = make('later');
    const order = [];
    await queue.add('delayed', {}, { delay: 700 });
    for (const priority of [3, 1, 2]) await queue.add(`priority ${priority}`, {}, { priority });
    queue.process('*', async (job) => { order.push(job.name); });
    await until(() => order.length === 4, 'all jobs');
    equal(order, ['priority 1', 'priority 2', 'priority 3', 'delayed']);
    await queue.close();
  });

  await check('repeated jobs, pause and resume', async () => {
    const queue = make('repeat');
    let runs = 0;
    queue.process(async () => { runs++; });
    await queue.add({}, { repeat: { every: 300 } });
    await until(() => runs >= 2, 'two runs');
    await queue.pause();
    equal(await queue.isPaused(), true);
    await queue.resume();
    const before = runs;
    await until(() => runs > before, 'a run after the pause');
    await queue.close();
  });

  await check('goes on after a restart', async () => {
    const queue = make('restart');
    const done = new Set();
    queue.process(async (job) => { done.add(job.data.n); });
    await queue.add({ n: 0 });
    await until(() => done.has(0), 'the job before');
    await restart();
    for (const n of range(20)) await queue.add({ n: n + 1 });
    await until(() => done.size === 21, 'the jobs after', 30000);
    await queue.close(true);
  }, 60000);
});
