'use strict';
const { HOST, PORT, NotTried, report, check, equal, until, sleep, restart, main, range } = require('checks');
const { createClient, createClientPool, defineScript, WatchError } = require('redis');
const { version } = require('redis/package.json');

const RESP = Number(process.env.PROTOCOL || '2');
const KEYS = range(60);
const options = { url: `redis://${HOST}:${PORT}`, RESP, unstableResp3: true };
const plainly = (value) => JSON.parse(JSON.stringify(value)); // its objects have no prototype

// The one stream of a reply; version 5 leaves RESP3's map as it comes.
function stream(reply) {
  if (Array.isArray(reply)) return [reply[0].name, reply[0].messages.map(({ id, message }) => [id, { ...message }])];
  const [[name, entries]] = Object.entries(reply);
  const fields = (flat) => Object.fromEntries(range(flat.length / 2).map((n) => [flat[2 * n], flat[2 * n + 1]]));
  return [name, entries.map(([id, flat]) => [id, fields(flat)])];
}

async function connect(more = {}) {
  const client = createClient({ ...options, ...more });
  client.on('error', () => {});
  return client.connect();
}

main(async () => {
  report('redis', version);
  const scripts = {
    double: defineScript({
      NUMBER_OF_KEYS: 1,
      SCRIPT: "return redis.call('incrby', KEYS[1], ARGV[1] * 2)",
      parseCommand(parser, key, n) {
        parser.pushKey(key);
        parser.push(String(n));
      },
      transformReply: (reply) => reply,
    }),
  };
  const redis = await connect({ scripts });
  const other = await connect();

  await check('strings', async () => {
    for (const n of KEYS) equal(await redis.set(`s:${n}`, `v${n}`), 'OK');
    equal(await redis.mGet(KEYS.map((n) => `s:${n}`)), KEYS.map((n) => `v${n}`));
    equal(await redis.mSet(KEYS.map((n) => [`m:${n}`, String(n)])), 'OK');
    equal(await redis.incrBy('m:7', 5), 12);
    equal(await redis.set('s:nx', 'a', { NX: true, EX: 100 }), 'OK');
    equal(await redis.set('s:nx', 'b', { NX: true }), null);
    equal(await redis.del(KEYS.map((n) => `m:${n}`)), KEYS.length);
    equal(await redis.exists(['s:1', 's:2', 'nosuch']), 2);
  });

  await check('hashes', async () => {
    for (const n of KEYS) equal(await redis.hSet(`h:${n}`, { a: n, b: 'x' }), 2);
    for (const n of KEYS) equal(plainly(await redis.hGetAll(`h:${n}`)), { a: String(n), b: 'x' });
    equal(await redis.hIncrBy('h:5', 'a', 2), 7);
  });

  await check('sorted sets, sets, lists', async () => {
    equal(await redis.zAdd('z', [{ score: 1.5, value: 'a' }, { score: 2, value: 'b' }]), 2);
    equal(plainly(await redis.zRangeWithScores('z', 0, -1)), [{ value: 'a', score: 1.5 }, { value: 'b', score: 2 }]);
    equal(await redis.zScore('z', 'a'), 1.5);
    equal(await redis.sAdd('set', ['a', 'b']), 2);
    equal((await redis.sMembers('set')).sort(), ['a', 'b']);
    equal(await redis.rPush('list', ['a', 'b', 'c']), 3);
    equal(await redis.lRange('list', 0, -1), ['a', 'b', 'c']);
  });

  await check('pipelines', async () => {
    const results = await Promise.all(range(1000).flatMap((n) => [redis.set(`p:${n}`, String(n)), redis.get(`p:${n}`)]));
    for (const n of range(1000)) equal(results[2 * n + 1], String(n));
    const batch = redis.multi();
    for (const n of range(100)) batch.get(`p:${n}`);
    equal(await batch.execAsPipeline(), range(100).map(String));
  });

  await check('MULTI', async () => {
    for (const n of KEYS) {
      const tag = `{tx:${n}}`;
      const results = await redis.multi().set(`${tag}a`, String(n)).incr(`${tag}a`).get(`${tag}a`).exec();
      equal(results, ['OK', n + 1, String(n + 1)]);
    }
  });

  await check('WATCH loops', async () => {
    const add = async (client, key) => {
      for (;;) {
        await client.watch(key);
        const value = Number(await client.get(key)) + 1;
        try {
          await client.multi().set(key, String(value)).exec();
          return;
        } catch (error) {
          if (!(error instanceof WatchError)) throw error;
        }
      }
    };
    const clients = await Promise.all(range(4).map(() => connect()));
    for (const key of ['w:1', 'w:2', 'w:3']) {
      await Promise.all(clients.map(async (client) => { for (const _ of range(20)) await add(client, key); }));
      equal(await redis.get(key), '80');
    }
    clients.forEach((client) => client.destroy());
  });

  await check('Lua by EVALSHA', async () => {
    for (const n of KEYS) equal(await redis.double(`l:${n}`, n), 2 * n);
    await redis.scriptFlush();
    for (const n of KEYS) equal(await redis.double(`l:${n}`, n), 4 * n);
    const sha = await redis.scriptLoad('return ARGV[1]');
    equal(await redis.evalSha(sha, { arguments: ['x'] }), 'x');
  });

  await check('blocking pops', async () => {
    const blocked = await connect();
    for (const n of range(9)) {
      const waiting = blocked.blPop(`b:${n}`, 10);
      await sleep(20);
      await other.rPush(`b:${n}`, `item${n}`);
      equal(plainly(await waiting), { key: `b:${n}`, element: `item${n}` });
    }
    equal(await blocked.brPop('b:none', 0.1), null);
    const moved = blocked.blMove('{b}1', '{b}2', 'LEFT', 'RIGHT', 5);
    await other.rPush('{b}1', 'x');
    equal(await moved, 'x');
    const popped = blocked.bzPopMin('b:z', 5);
    await other.zAdd('b:z', { score: 1, value: 'm' });
    equal(plainly(await popped), { key: 'b:z', value: 'm', score: 1 });
    blocked.destroy();
  });

  await check('streams with consumer groups', async () => {
    for (const n of range(9)) {
      const key = `x:${n}`;
      equal(await redis.xGroupCreate(key, 'g', '0', { MKSTREAM: true }), 'OK');
      const ids = [];
      for (const i of range(3)) ids.push(await redis.xAdd(key, '*', { i: String(i) }));
      const [name, messages] = stream(await redis.xReadGroup('g', 'c', { key, id: '>' }, { COUNT: 2 }));
      equal([name, messages], [key, ids.slice(0, 2).map((id, i) => [id, { i: String(i) }])]);
      equal(await redis.xAck(key, 'g', ids[0]), 1);
      equal((await redis.xPending(key, 'g')).pending, 1);
      equal((await redis.xAutoClaim(key, 'g', 'd', 0, '0')).messages.map(({ id }) => id), [ids[1]]);
    }
  });

  await check('streams that block', async () => {
    await redis.xGroupCreate('xb', 'g', '$', { MKSTREAM: true });
    const blocked = await connect();
    const waiting = blocked.xReadGroup('g', 'c', { key: 'xb', id: '>' }, { BLOCK: 10000 });
    await sleep(20);
    const id = await other.xAdd('xb', '*', { a: 'b' });
    equal(stream(await waiting), ['xb', [[id, { a: 'b' }]]]);
    equal(await blocked.xRead({ key: 'xb', id: '$' }, { BLOCK: 50 }), null);
    blocked.destroy();
  });

  await check('pub/sub', async () => {
    const sub = await connect();
    const got = [];
    await sub.subscribe(['ch:1', 'ch:2'], (message, channel) => got.push([channel, message]));
    await sub.pSubscribe('pat:*', (message, channel) => got.push([channel, message]));
    // Version 5 with RESP3 waits for a pong of RESP2's form, also from a plain server.
    if (RESP === 2) equal((await sub.ping()).toLowerCase(), 'pong');
    for (const n of range(50)) await other.publish('ch:1', `m${n}`);
    await other.publish('pat:x', 'p');
    await until(() => got.length >= 51, 'messages');
    equal(got, [...range(50).map((n) => ['ch:1', `m${n}`]), ['pat:x', 'p']]);
    if (RESP === 3) equal(await sub.set('in between', '1'), 'OK');
    await sub.unsubscribe(['ch:1', 'ch:2']); // without names version 5 waits for ever, also on a plain server
    await sub.pUnsubscribe('pat:*');
    equal(String(await sub.set('after', '1')), 'OK'); // version 5: a Buffer, also from a plain server
    sub.destroy();
  });

  await check('sharded pub/sub', async () => {
    const sub = await connect();
    const got = [];
    for (const n of range(9)) await sub.sSubscribe(`sh:${n}`, (message, channel) => got.push([channel, message]));
    for (const n of range(9)) await other.sPublish(`sh:${n}`, `m${n}`);
    await until(() => got.length >= 9, 'messages');
    equal(got.sort(), range(9).map((n) => [`sh:${n}`, `m${n}`]));
    sub.destroy();
  });

  await check('SCAN iterators', async () => {
    await other.mSet(range(500).map((n) => [`scan:${n}`, String(n)]));
    const found = new Set();
    for await (const keys of redis.scanIterator({ MATCH: 'scan:*', COUNT: 50 })) keys.forEach((key) => found.add(key));
    equal(found.size, 500);
    await redis.hSet('scanned', Object.fromEntries(range(600).map((n) => [`f${n}`, n])));
    let fields = 0;
    for await (const page of redis.hScanIterator('scanned', { COUNT: 100 })) fields += page.length;
    equal(fields, 600);
  });

  await check('a pool', async () => {
    const pool = createClientPool(options, { minimum: 1, maximum: 5 });
    pool.on('error', () => {});
    await pool.connect();
    await Promise.all(KEYS.map((n) => pool.set(`pool:${n}`, String(n))));
    equal(await Promise.all(KEYS.map((n) => pool.get(`pool:${n}`))), KEYS.map(String));
    await pool.close();
  });

  await check('client-side cache', async () => {
    if (RESP !== 3) throw new NotTried('only with RESP3');
    const { BasicClientSideCache } = require('@redis/client');
    const clientSideCache = new BasicClientSideCache({ ttl: 0, maxEntries: 0 });
    const cached = await connect({ clientSideCache });
    for (const n of KEYS) await other.set(`cc:${n}`, 'old');
    for (const _ of range(2)) for (const n of KEYS) equal(await cached.get(`cc:${n}`), 'old');
    equal(clientSideCache.stats().hitCount, KEYS.length);
    for (const n of KEYS) await other.set(`cc:${n}`, 'new');
    for (const n of KEYS) await until(async () => (await cached.get(`cc:${n}`)) === 'new', 'the new value', 5000);
    cached.destroy();
  });

  await check('MONITOR', async () => {
    const watcher = await connect();
    const seen = [];
    await watcher.monitor((line) => seen.push(String(line)));
    await until(async () => {
      await other.set('monitored', '1');
      return seen.some((line) => /"set" "monitored" "1"/i.test(line));
    }, 'the command is shown', 5000);
    watcher.destroy();
  });

  await check('reconnect after a restart', async () => {
    const sub = await connect();
    const got = [];
    let subscribed = true;
    await sub.subscribe('again', (message) => got.push(message)).catch(() => { subscribed = false; });
    await restart();
    await until(() => redis.set('r', 'x').catch(() => false), 'an answer');
    for (const n of KEYS) equal(await redis.set(`r:${n}`, String(n)), 'OK');
    equal(await redis.mGet(KEYS.map((n) => `r:${n}`)), KEYS.map(String));
    if (!subscribed) throw new Error('cannot subscribe');
    await until(async () => {
      await other.publish('again', 'hello').catch(() => {});
      return got.length;
    }, 'a message after the restart');
    sub.destroy();
  }, 60000);
});
