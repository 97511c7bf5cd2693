'use strict';
const { HOST, PORT, report, check, equal, until, sleep, restart, main, range, versionOf } = require('checks');
const { Queue, Worker, QueueEvents, FlowProducer } = require('bullmq');

const connection = { host: HOST, port: PORT, maxRetriesPerRequest: null };
const options = { connection, prefix: '{bull}' };
const quiet = (one) => one.on('error', () => {});

main(async () => {
  report('bullmq', versionOf('bullmq'));

  await check('jobs and their results', async () => {
    const queue = quiet(new Queue('work', options));
    const events = quiet(new QueueEvents('work', options));
    await events.waitUntilReady();
    const worker = quiet(new Worker('work', async (job) => job.data.n * 2, { ...options, concurrency: 5 }));
    const jobs = await queue.addBulk(range(40).map((n) => ({ name: 'double', data: { n } })));
    equal(await Promise.all(jobs.map((job) => job.waitUntilFinished(events, 20000))), range(40).map((n) => 2 * n));
    const { completed, failed, waiting } = await queue.getJobCounts('completed', 'failed', 'waiting');
    equal([completed, failed, waiting], [40, 0, 0]);
    await Promise.all([worker.close(), events.close(), queue.close()]);
  });

  await check('retries with backoff, failures', async () => {
    const queue = quiet(new Queue('retry', options));
    const events = quiet(new QueueEvents('retry', options));
    await events.waitUntilReady();
    const tries = {};
    const worker = quiet(new Worker('retry', async (job) => {
      tries[job.name] = (tries[job.name] || 0) + 1;
      if (job.name === 'never' || tries[job.name] < 3) throw new Error('not yet');
      return tries[job.name];
    }, options));
    const flaky = await queue.add('flaky', {}, { attempts: 3, backoff: { type: 'fixed', delay: 50 } });
    const never = await queue.add('never', {}, { attempts: 2, backoff: 20 });
    equal(await flaky.waitUntilFinished(events, 20000), 3);
    await never.waitUntilFinished(events, 20000).then(() => { throw new Error('it did not fail'); }, (error) => equal(error.message, 'not yet'));
    equal(tries, { flaky: 3, never: 2 });
    equal((await queue.getFailed()).map((job) => job.name), ['never']);
    await Promise.all([worker.close(), events.close(), queue.close()]);
  });

  await check('delays and priorities', async () => {
    const queue = quiet(new Queue('later', options));
    const order = [];
    await queue.add('delayed', {}, { delay: 700 });
    for (const priority of [3, 1, 2]) await queue.add(`priority ${priority}`, {}, { priority });
    const start = Date.now();
    const took = {};
    const worker = quiet(new Worker('later', async (job) => { order.push(job.name); took[job.name] = Date.now() - start; }, options));
    await until(() => order.length === 4, 'all jobs');
    equal(order, ['priority 1', 'priority 2', 'priority 3', 'delayed']);
    await Promise.all([worker.close(), queue.close()]);
  });

  await check('repeated jobs', async () => {
    const queue = quiet(new Queue('repeat', options));
    let runs = 0;
    const worker = quiet(new Worker('repeat', async () => { runs++; }, options));
    await queue.upsertJobScheduler('every', { every: 300 }, { name: 'tick' });
    await until(() => runs >= 3, 'three runs');
    await queue.removeJobScheduler('every');
    await Promise.all([worker.close(), queue.close()]);
  });

  await check('flows', async () => {
    const producer = quiet(new FlowProducer(options));
    const queue = quiet(new Queue('parents', options));
    const children = quiet(new Worker('children', async (job) => job.data.n, options));
    const sums = [];
    const parents = quiet(new Worker('parents', async (job) => {
      sums.push(Object.values(await job.getChildrenValues()).reduce((a, b) => a + b, 0));
    }, options));
    await producer.add({ name: 'sum', queueName: 'parents', children: range(5).map((n) => ({ name: 'n', data: { n }, queueName: 'children' })) });
    await until(() => sums.length, 'the parent');
    equal(sums, [10]);
    await Promise.all([children.close(), parents.close(), producer.close(), queue.close()]);
  });

  await check('events', async () => {
    const queue = quiet(new Queue('events', options));
    const events = quiet(new QueueEvents('events', options));
    const seen = [];
    for (const name of ['added', 'active', 'progress', 'completed']) events.on(name, () => seen.push(name));
    await events.waitUntilReady();
    await sleep(100);
    const worker = quiet(new Worker('events', async (job) => job.updateProgress(50), options));
    await queue.add('a', {});
    await until(() => seen.includes('completed'), 'the events');
    equal(seen.filter((name, n) => seen.indexOf(name) === n), ['added', 'active', 'progress', 'completed']);
    await Promise.all([worker.close(), events.close(), queue.close()]);
  });

  await check('goes on after a restart', async () => {
    const queue = quiet(new Queue('restart', options));
    const done = new Set();
    const worker = quiet(new Worker('restart', async (job) => { done.add(job.data.n); }, options));
    await queue.add('a', { n: 0 });
    await until(() => done.has(0), 'the job before');
    await restart();
    for (const n of range(20)) await queue.add('a', { n: n + 1 });
    await until(() => done.size === 21, 'the jobs after', 30000);
    await Promise.all([worker.close(true), queue.close()]);
  }, 60000);
});
