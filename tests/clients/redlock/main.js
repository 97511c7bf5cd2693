'use strict';
const { HOST, PORT, report, check, equal, until, restart, sleep, main, range, versionOf } = require('checks');
const module_ = require('redlock');
const Redis = require('ioredis');
const Redlock = module_.default || module_;
const five = Boolean(module_.default);

main(async () => {
  report('redlock', versionOf('redlock'));
  const client = new Redis({ host: HOST, port: PORT });
  client.on('error', () => {});
  const options = { retryCount: 200, retryDelay: 20, retryJitter: 20 };
  const make = (more) => { const one = new Redlock([client], { ...options, ...more }); one.on(five ? 'error' : 'clientError', () => {}); return one; };
  const acquire = (redlock, names, ms) => (five ? redlock.acquire(names, ms) : redlock.lock(names, ms));
  const release = (lock) => (five ? lock.release() : lock.unlock());
  const refused = (promise) => promise.then(() => { throw new Error('was given'); }, () => {});

  await check('one holder at a time', async () => {
    const redlock = make();
    for (const name of range(9)) {
      const lock = await acquire(redlock, [`lock:${name}`], 5000);
      await refused(acquire(make({ retryCount: 0 }), [`lock:${name}`], 5000));
      await release(lock);
      await release(await acquire(redlock, [`lock:${name}`], 5000));
    }
  });

  await check('a counter under a lock', async () => {
    const redlock = make();
    await client.set('counted', 0);
    await Promise.all(range(10).map(async () => {
      for (const _ of range(3)) {
        const lock = await acquire(redlock, ['counter'], 5000);
        await client.set('counted', Number(await client.get('counted')) + 1);
        await release(lock);
      }
    }));
    equal(await client.get('counted'), '30');
  });

  await check('extend and expire', async () => {
    const redlock = make({ retryCount: 0 });
    let lock = await acquire(redlock, ['extended'], 500);
    lock = await lock.extend(3000);
    await sleep(700);
    await refused(acquire(redlock, ['extended'], 500));
    await release(lock);
    await acquire(redlock, ['expired'], 200);
    await until(() => acquire(redlock, ['expired'], 200).catch(() => false), 'it expires', 3000);
  });

  await check('several resources of one hash tag', async () => {
    const lock = await acquire(make(), ['{r}1', '{r}2'], 3000);
    await refused(acquire(make({ retryCount: 0 }), ['{r}2'], 3000));
    await release(lock);
    equal(await client.exists('{r}1', '{r}2'), 0);
  });

  await check('goes on after a restart', async () => {
    await restart();
    await release(await acquire(make(), ['after'], 3000));
  }, 60000);
});
