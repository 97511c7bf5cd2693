'use strict';
const { HOST, PORT, SUBJECT, NotTried, report, check, equal, until, restart, main, range, versionOf } = require('checks');
const Queue = require('bee-queue');

const make = (name, more = {}) => {
  const queue = new Queue(name, { redis: { host: HOST, port: PORT }, prefix: '{bq}', activateDelayedJobs: true, ...more });
  queue.on('error', () => {});
  return queue;
};

main(async () => {
  report('bee-queue', versionOf('bee-queue'));

  await check('jobs, results and events', async () => {
    const queue = make('work', { isWorker: false });
    const worker = make('work');
    await Promise.all([queue.ready(), worker.ready()]);
    worker.process(5, async (job) => job.data.n * 2);
    const results = await Promise.all(range(40).map(async (n) => {
      const job = queue.createJob({ n });
      const result = new Promise((done) => job.on('succeeded', done));
      await job.save();
      return result;
    }));
    equal(results, range(40).map((n) => 2 * n));
    equal((await queue.checkHealth()).newestJob, 40);
    await Promise.all([queue.close(), worker.close()]);
  });

  await check('retries, failures, progress', async () => {
    const queue = make('retry');
    let tries = 0;
    queue.process(async (job) => {
      job.reportProgress(10);
      if (job.data.never || ++tries < 3) throw new Error('not yet');
      return tries;
    });
    const flaky = queue.createJob({}).retries(4).backoff('fixed', 50);
    const progress = [];
    flaky.on('progress', (value) => progress.push(value));
    const result = new Promise((done) => flaky.on('succeeded', done));
    await flaky.save();
    equal(await result, 3);
    const never = queue.createJob({ never: true });
    const failure = new Promise((done) => never.on('failed', done));
    await never.save();
    equal((await failure).message, 'not yet');
    await until(() => progress.length >= 3, 'progress');
    await queue.close();
  });

  await check('delays', async () => {
    const queue = make('later');
    const order = [];
    queue.process(async (job) => { order.push(job.data.n); });
    await queue.createJob({ n: 'later' }).delayUntil(Date.now() + 600).save();
    await queue.createJob({ n: 'now' }).save();
    await until(() => order.length === 2, 'both jobs');
    equal(order, ['now', 'later']);
    await queue.close();
  });

  await check('goes on after a restart', async () => {
    const queue = make('restart');
    const done = new Set();
    queue.process(async (job) => { done.add(job.data.n); });
    await queue.createJob({ n: 0 }).save();
    await until(() => done.has(0), 'the job before');
    if (SUBJECT === 'plain') throw new NotTried('it does not load its scripts again when the server has lost them');
    await restart();
    for (const n of range(20)) await until(() => queue.createJob({ n: n + 1 }).save().catch(() => false), 'saved');
    await until(() => done.size === 21, 'the jobs after', 30000);
  }, 60000);
});
