'use strict';
const { HOST, PORT, report, check, equal, until, restart, main, range, versionOf } = require('checks');
const { RateLimiterRedis, RateLimiterQueue, BurstyRateLimiter } = require('rate-limiter-flexible');

async function connect() {
  if (process.env.CLIENT === 'ioredis') {
    const Redis = require('ioredis');
    const client = new Redis({ host: HOST, port: PORT });
    client.on('error', () => {});
    return { storeClient: client };
  }
  const client = require('redis').createClient({ url: `redis://${HOST}:${PORT}` });
  client.on('error', () => {});
  await client.connect();
  return { storeClient: client, useRedisPackage: true };
}

const refused = (promise) => promise.then(() => { throw new Error('was not refused'); }, (error) => {
  if (error instanceof Error) throw error;
  return error;
});

main(async () => {
  report('rate-limiter-flexible', versionOf('rate-limiter-flexible'));
  const client = await connect();

  await check('points of many users', async () => {
    const limiter = new RateLimiterRedis({ ...client, points: 5, duration: 60, keyPrefix: 'a' });
    for (const user of range(30)) {
      const left = [];
      for (const _ of range(5)) left.push((await limiter.consume(`user${user}`)).remainingPoints);
      equal(left, [4, 3, 2, 1, 0]);
      const refusal = await refused(limiter.consume(`user${user}`));
      equal(refusal.consumedPoints, 6);
      if (refusal.msBeforeNext < 50000) throw new Error(`${refusal.msBeforeNext} ms`);
    }
    equal((await limiter.get('user3')).consumedPoints, 6);
    equal(await limiter.delete('user3'), true);
    equal(await limiter.get('user3'), null);
    equal((await limiter.penalty('user3', 2)).consumedPoints, 2);
    equal((await limiter.reward('user3', 1)).consumedPoints, 1);
  });

  await check('no point is given twice', async () => {
    const limiter = new RateLimiterRedis({ ...client, points: 50, duration: 60, keyPrefix: 'b' });
    const results = await Promise.allSettled(range(200).map(() => limiter.consume('shared')));
    equal(results.filter(({ status }) => status === 'fulfilled').length, 50);
  });

  await check('blocks and durations', async () => {
    const limiter = new RateLimiterRedis({ ...client, points: 1, duration: 1, blockDuration: 2, keyPrefix: 'c' });
    await limiter.consume('x');
    const { msBeforeNext } = await refused(limiter.consume('x'));
    if (msBeforeNext <= 1000) throw new Error(`${msBeforeNext} ms`);
    await until(() => limiter.consume('x').catch(() => false), 'the block ends', 5000);
  });

  await check('bursts and queues', async () => {
    const slow = new RateLimiterRedis({ ...client, points: 2, duration: 1, keyPrefix: 'd' });
    const burst = new RateLimiterRedis({ ...client, points: 3, duration: 10, keyPrefix: 'e' });
    const bursty = new BurstyRateLimiter(slow, burst);
    for (const _ of range(5)) await bursty.consume('x');
    await refused(bursty.consume('x'));
    const queue = new RateLimiterQueue(new RateLimiterRedis({ ...client, points: 5, duration: 1, keyPrefix: 'f' }));
    equal((await Promise.all(range(10).map(() => queue.removeTokens(1)))).length, 10);
  });

  await check('goes on after a restart', async () => {
    await restart();
    const limiter = new RateLimiterRedis({ ...client, points: 5, duration: 60, keyPrefix: 'g' });
    await until(() => limiter.consume('x').catch(() => false), 'an answer');
  }, 60000);
});
