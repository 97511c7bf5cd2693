'use strict';
const { HOST, PORT, report, check, equal, until, sleep, restart, main, range, NotTried, versionOf } = require('checks');
const { GlideClient, GlideClientConfiguration, Batch, Script, ProtocolVersion, TimeUnit, ListDirection } = require('@valkey/valkey-glide');

const KEYS = range(60);
const protocol = process.env.PROTOCOL === '2' ? ProtocolVersion.RESP2 : ProtocolVersion.RESP3;
const addresses = [{ host: HOST, port: PORT }];
const connect = (more = {}) => GlideClient.createClient({ addresses, protocol, requestTimeout: 10000, ...more });
const numbers = Object.fromEntries(KEYS.map((n) => [`m:${n}`, String(n)]));

main(async () => {
  report('@valkey/valkey-glide', versionOf('@valkey/valkey-glide'));
  const client = await connect();
  const other = await connect({ clientName: 'other' });

  await check('strings', async () => {
    for (const n of KEYS) equal(await client.set(`s:${n}`, `v${n}`), 'OK');
    equal(await client.mget(KEYS.map((n) => `s:${n}`)), KEYS.map((n) => `v${n}`));
    equal(await client.mset(numbers), 'OK');
    equal(await client.incrBy('m:7', 5), 12);
    const once = { conditionalSet: 'onlyIfDoesNotExist', expiry: { type: TimeUnit.Seconds, count: 100 } };
    equal(await client.set('s:nx', 'a', once), 'OK');
    equal(await client.set('s:nx', 'b', once), null);
    equal(await client.del(Object.keys(numbers)), KEYS.length);
    equal(await client.exists(['s:1', 's:2', 'nosuch']), 2);
    equal(await other.customCommand(['CLIENT', 'GETNAME']), 'other');
  });

  await check('hashes', async () => {
    for (const n of KEYS) equal(await client.hset(`h:${n}`, { a: String(n), b: 'x' }), 2);
    for (const n of KEYS) {
      const pairs = (await client.hgetall(`h:${n}`)).map(({ field, value }) => [field, value]);
      equal(Object.fromEntries(pairs), { a: String(n), b: 'x' });
    }
    equal(await client.hincrBy('h:5', 'a', 2), 7);
  });

  await check('pipelines', async () => {
    const batch = new Batch(false);
    for (const n of range(500)) batch.set(`p:${n}`, String(n)).get(`p:${n}`);
    const results = await client.exec(batch, true);
    equal(results, range(500).flatMap((n) => ['OK', String(n)]));
    const many = await Promise.all(range(500).map((n) => client.get(`p:${n}`)));
    equal(many, range(500).map(String));
  });

  await check('MULTI', async () => {
    for (const n of KEYS) {
      const batch = new Batch(true).set(`{tx:${n}}a`, String(n)).incr(`{tx:${n}}a`).get(`{tx:${n}}a`);
      equal(await client.exec(batch, true), ['OK', n + 1, String(n + 1)]);
    }
  });

  await check('WATCH loops', async () => {
    // A connection for each: a transaction belongs to the connection.
    const clients = await Promise.all(range(3).map(() => connect()));
    const add = async (one, key) => {
      for (;;) {
        await one.watch([key]);
        const value = Number(await one.get(key)) + 1;
        if ((await one.exec(new Batch(true).set(key, String(value)), true)) !== null) return;
      }
    };
    for (const key of ['w:1', 'w:2', 'w:3']) {
      await Promise.all(clients.map(async (one) => { for (const _ of range(20)) await add(one, key); }));
      equal(await client.get(key), '60');
    }
    clients.forEach((one) => one.close());
  });

  await check('Lua by EVALSHA', async () => {
    const double = new Script("return redis.call('incrby', KEYS[1], ARGV[1] * 2)");
    for (const n of KEYS) equal(await client.invokeScript(double, { keys: [`l:${n}`], args: [String(n)] }), 2 * n);
    await client.scriptFlush();
    for (const n of KEYS) equal(await client.invokeScript(double, { keys: [`l:${n}`], args: [String(n)] }), 4 * n);
    double.release();
  });

  await check('blocking pops', async () => {
    const blocked = await connect();
    for (const n of range(9)) {
      const waiting = blocked.blpop([`b:${n}`], 10);
      await sleep(20);
      await other.rpush(`b:${n}`, [`item${n}`]);
      equal(await waiting, [`b:${n}`, `item${n}`]);
    }
    equal(await blocked.brpop(['b:none'], 0.1), null);
    const moved = blocked.blmove('{b}1', '{b}2', ListDirection.LEFT, ListDirection.RIGHT, 5);
    await other.rpush('{b}1', ['x']);
    equal(await moved, 'x');
    blocked.close();
  });

  await check('streams with consumer groups', async () => {
    for (const n of range(9)) {
      const key = `x:${n}`;
      equal(await client.xgroupCreate(key, 'g', '0', { mkStream: true }), 'OK');
      const ids = [];
      for (const i of range(3)) ids.push(await client.xadd(key, [['i', String(i)]]));
      const [stream] = await client.xreadgroup('g', 'c', { [key]: '>' }, { count: 2 });
      equal(stream.key, key);
      equal(Object.values(stream.value).length || stream.value.length, 2);
      equal(await client.xack(key, 'g', [ids[0]]), 1);
      equal((await client.xpending(key, 'g'))[0], 1);
    }
  });

  await check('streams that block', async () => {
    await client.xgroupCreate('xb', 'g', '$', { mkStream: true });
    const blocked = await connect();
    const waiting = blocked.xreadgroup('g', 'c', { xb: '>' }, { block: 5000 });
    await sleep(20);
    await other.xadd('xb', [['a', 'b']]);
    equal((await waiting)[0].key, 'xb');
    blocked.close();
  });

  await check('pub/sub', async () => {
    if (protocol === ProtocolVersion.RESP2) throw new NotTried('it subscribes with RESP3 only');
    const { Exact, Pattern } = GlideClientConfiguration.PubSubChannelModes;
    const got = [];
    const sub = await connect({
      pubsubSubscriptions: {
        channelsAndPatterns: { [Exact]: new Set(['ch:1', 'ch:2']), [Pattern]: new Set(['pat:*']) },
        callback: ({ message, channel }) => got.push([channel, message]),
      },
    });
    await until(async () => {
      await other.publish('sync', 'pat:0'); // the message, then the channel
      return got.length;
    }, 'subscribed', 10000);
    got.length = 0;
    for (const n of range(50)) await other.publish(`m${n}`, 'ch:1');
    await other.publish('p', 'pat:x');
    await until(() => got.some(([channel]) => channel === 'pat:x'), 'messages');
    equal(got.filter(([channel]) => channel === 'ch:1'), range(50).map((n) => ['ch:1', `m${n}`]));
    equal(await sub.set('in between', '1'), 'OK');
    sub.close();
  });

  await check('SCAN iterators', async () => {
    await other.mset(Object.fromEntries(range(500).map((n) => [`scan:${n}`, String(n)])));
    const found = new Set();
    let cursor = '0';
    do {
      const [next, keys] = await client.scan(cursor, { match: 'scan:*', count: 50 });
      keys.forEach((key) => found.add(key));
      cursor = next;
    } while (cursor !== '0');
    equal(found.size, 500);
  });

  await check('reconnect after a restart', async () => {
    await restart();
    await until(() => client.set('r', 'x').catch(() => false), 'an answer', 20000);
    for (const n of KEYS) equal(await client.set(`r:${n}`, String(n)), 'OK');
    equal(await client.mget(KEYS.map((n) => `r:${n}`)), KEYS.map(String));
  }, 60000);
});
