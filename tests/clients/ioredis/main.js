'use strict';
const { HOST, PORT, report, check, equal, until, sleep, restart, main, range } = require('checks');
const Redis = require('ioredis');
const { version } = require('ioredis/package.json');

const KEYS = range(60);
const connect = (options = {}) => new Redis({ host: HOST, port: PORT, ...options });

main(async () => {
  report('ioredis', version);
  const redis = connect();
  const other = connect({ lazyConnect: true });
  await other.connect();

  await check('strings', async () => {
    for (const n of KEYS) equal(await redis.set(`s:${n}`, `v${n}`), 'OK');
    equal(await redis.mget(...KEYS.map((n) => `s:${n}`)), KEYS.map((n) => `v${n}`));
    equal(await redis.mset(Object.fromEntries(KEYS.map((n) => [`m:${n}`, n]))), 'OK');
    equal(await redis.incrby('m:7', 5), 12);
    equal(await redis.getBuffer('s:3'), Buffer.from('v3'));
    equal(await redis.set('s:nx', 'a', 'EX', 100, 'NX'), 'OK');
    equal(await redis.set('s:nx', 'b', 'NX'), null);
    equal(await redis.del(...KEYS.map((n) => `m:${n}`)), KEYS.length);
    equal(await redis.exists('s:1', 's:2', 'nosuch'), 2);
    const binary = Buffer.from([0, 13, 10, 255, 36, 42]);
    await redis.set(binary, binary);
    equal(await redis.getBuffer(binary), binary);
  });

  await check('hashes', async () => {
    for (const n of KEYS) equal(await redis.hset(`h:${n}`, { a: n, b: 'x' }), 2);
    for (const n of KEYS) equal(await redis.hgetall(`h:${n}`), { a: String(n), b: 'x' });
    equal(await redis.hincrby('h:5', 'a', 2), 7);
    equal(await redis.hgetall('nosuch'), {});
  });

  await check('pipelines', async () => {
    const pipeline = redis.pipeline();
    for (const n of range(1000)) pipeline.set(`p:${n}`, n).get(`p:${n}`);
    pipeline.lpush('p:0', 'wrong type');
    const results = await pipeline.exec();
    equal(results.length, 2001);
    for (const n of range(1000)) equal(results[2 * n + 1], [null, String(n)]);
    if (!/WRONGTYPE/.test(results[2000][0].message)) throw results[2000][0];
    const auto = connect({ enableAutoPipelining: true });
    equal(await Promise.all(range(200).map((n) => auto.get(`p:${n}`))), range(200).map(String));
    auto.disconnect();
  });

  await check('MULTI', async () => {
    for (const n of KEYS) {
      const tag = `{tx:${n}}`;
      const results = await redis.multi().set(`${tag}a`, n).incr(`${tag}a`).get(`${tag}a`).exec();
      equal(results, [[null, 'OK'], [null, n + 1], [null, String(n + 1)]]);
    }
    await redis.multi({ pipeline: false });
    equal(await redis.set('{tx}u', '1'), 'QUEUED');
    equal(await redis.discard(), 'OK');
    equal(await redis.exists('{tx}u'), 0);
  });

  await check('WATCH loops', async () => {
    const add = async (client, key) => {
      for (;;) {
        await client.watch(key);
        const value = Number(await client.get(key)) + 1;
        const done = await client.multi().set(key, value).exec();
        if (done) return;
      }
    };
    const clients = range(4).map(() => connect());
    for (const key of ['w:1', 'w:2', 'w:3']) {
      await Promise.all(clients.map(async (client) => { for (const _ of range(20)) await add(client, key); }));
      equal(await redis.get(key), '80');
    }
    clients.forEach((client) => client.disconnect());
  });

  await check('Lua by EVALSHA', async () => {
    redis.defineCommand('double', { numberOfKeys: 1, lua: "return redis.call('incrby', KEYS[1], ARGV[1] * 2)" });
    for (const n of KEYS) equal(await redis.double(`l:${n}`, n), 2 * n);
    await redis.script('FLUSH');
    for (const n of KEYS) equal(await redis.double(`l:${n}`, n), 4 * n);
    const sha = await redis.script('LOAD', 'return ARGV[1]');
    equal(await redis.evalsha(sha, 0, 'x'), 'x');
    equal(await redis.script('EXISTS', sha), [1]);
    const pipeline = redis.pipeline();
    for (const n of KEYS) pipeline.double(`l:${n}`, 1);
    equal(await pipeline.exec(), KEYS.map((n) => [null, 4 * n + 2]));
  });

  await check('blocking pops', async () => {
    for (const n of range(9)) {
      const waiting = redis.blpop(`b:${n}`, 10);
      await sleep(20);
      await other.rpush(`b:${n}`, `item${n}`);
      equal(await waiting, [`b:${n}`, `item${n}`]);
    }
    equal(await redis.brpop('b:none', 0.1), null);
    const moved = redis.blmove('{b}1', '{b}2', 'LEFT', 'RIGHT', 5);
    await other.rpush('{b}1', 'x');
    equal(await moved, 'x');
    const popped = redis.bzpopmin('b:z', 5);
    await other.zadd('b:z', 1, 'm');
    equal(await popped, ['b:z', 'm', '1']);
  });

  await check('streams with consumer groups', async () => {
    for (const n of range(9)) {
      const key = `x:${n}`;
      equal(await redis.xgroup('CREATE', key, 'g', '0', 'MKSTREAM'), 'OK');
      const ids = [];
      for (const i of range(3)) ids.push(await redis.xadd(key, '*', 'i', i));
      const [[name, entries]] = await redis.xreadgroup('GROUP', 'g', 'c', 'COUNT', 2, 'STREAMS', key, '>');
      equal([name, entries.map(([id, fields]) => [id, ...fields])], [key, ids.slice(0, 2).map((id, i) => [id, 'i', String(i)])]);
      equal(await redis.xack(key, 'g', ids[0]), 1);
      equal((await redis.xpending(key, 'g')).slice(0, 3), [1, ids[1], ids[1]]);
      equal((await redis.xautoclaim(key, 'g', 'd', 0, '0'))[1].map(([id]) => id), [ids[1]]);
    }
  });

  await check('streams that block', async () => {
    await redis.xgroup('CREATE', 'xb', 'g', '$', 'MKSTREAM');
    const waiting = redis.xreadgroup('GROUP', 'g', 'c', 'BLOCK', 10000, 'STREAMS', 'xb', '>');
    await sleep(20);
    const id = await other.xadd('xb', '*', 'a', 'b');
    equal(await waiting, [['xb', [[id, ['a', 'b']]]]]);
    equal(await redis.xread('BLOCK', 50, 'STREAMS', 'xb', '$'), null);
  });

  await check('pub/sub', async () => {
    const sub = connect();
    const got = [];
    sub.on('message', (channel, message) => got.push([channel, message]));
    sub.on('pmessage', (pattern, channel, message) => got.push([pattern, channel, message]));
    equal(await sub.subscribe('ch:1', 'ch:2'), 2);
    equal(await sub.psubscribe('pat:*'), 3);
    equal(String(await sub.ping()).toLowerCase().slice(0, 4), 'pong');
    for (const n of range(50)) await other.publish('ch:1', `m${n}`);
    await other.publish('pat:x', 'p');
    await until(() => got.length >= 51, 'messages');
    equal(got, [...range(50).map((n) => ['ch:1', `m${n}`]), ['pat:*', 'pat:x', 'p']]);
    equal(await sub.unsubscribe('ch:1', 'ch:2'), 1);
    equal(await sub.punsubscribe(), 0);
    equal(await sub.set('after', '1'), 'OK');
    sub.disconnect();
  });

  await check('sharded pub/sub', async () => {
    const sub = connect();
    const got = [];
    sub.on('smessage', (channel, message) => got.push([channel, message]));
    for (const n of range(9)) await sub.ssubscribe(`sh:${n}`);
    for (const n of range(9)) await other.spublish(`sh:${n}`, `m${n}`);
    await until(() => got.length >= 9, 'messages');
    equal(got.sort(), range(9).map((n) => [`sh:${n}`, `m${n}`]));
    sub.disconnect();
  });

  await check('SCAN iterators', async () => {
    await other.mset(Object.fromEntries(range(500).map((n) => [`scan:${n}`, n])));
    const found = new Set();
    for await (const keys of redis.scanStream({ match: 'scan:*', count: 50 })) keys.forEach((key) => found.add(key));
    equal(found.size, 500);
    await redis.hset('scanned', Object.fromEntries(range(600).map((n) => [`f${n}`, n])));
    let fields = 0;
    for await (const page of redis.hscanStream('scanned', { count: 100 })) fields += page.length / 2;
    equal(fields, 600);
  });

  await check('keyPrefix and transformers', async () => {
    const prefixed = connect({ keyPrefix: 'pre:' });
    await prefixed.mset('a', 1, 'b', 2);
    equal(await redis.mget('pre:a', 'pre:b'), ['1', '2']);
    equal(await prefixed.sort('nosuch'), []);
    prefixed.disconnect();
  });

  await check('MONITOR', async () => {
    const watcher = connect();
    const monitor = await watcher.monitor();
    const seen = [];
    monitor.on('monitor', (_time, args) => seen.push(args.join(' ')));
    await until(async () => {
      await other.set('monitored', '1');
      return seen.some((line) => /^set monitored 1$/i.test(line));
    }, 'the command is shown', 5000);
    monitor.disconnect();
    watcher.disconnect();
  });

  await check('reconnect after a restart', async () => {
    const client = connect({ maxRetriesPerRequest: null });
    const sub = connect();
    client.on('error', () => {});
    sub.on('error', () => {});
    redis.on('error', () => {});
    other.on('error', () => {});
    await client.set('r', 'before');
    await restart();
    for (const n of KEYS) equal(await client.set(`r:${n}`, n), 'OK');
    equal(await client.mget(...KEYS.map((n) => `r:${n}`)), KEYS.map(String));
    equal(String(await sub.ping()).toLowerCase().slice(0, 4), 'pong');
    client.disconnect();
    sub.disconnect();
  }, 60000);

  await check('subscriptions after a restart', async () => {
    const sub = connect();
    sub.on('error', () => {});
    const got = [];
    sub.on('message', (channel, message) => got.push(message));
    await sub.subscribe('again');
    await restart();
    await until(async () => {
      await other.publish('again', 'hello').catch(() => {});
      return got.length;
    }, 'a message after the restart');
    equal(got[0], 'hello');
    sub.disconnect();
  }, 60000);
});
