// An Express application with sessions, asked over HTTP.
'use strict';
const { HOST, PORT, report, check, equal, until, restart, main, range, versionOf } = require('checks');
const express = require('express');
const session = require('express-session');
const { createClient } = require('redis');
const { RedisStore } = require('connect-redis');

main(async () => {
  report('connect-redis', versionOf('connect-redis'));
  const client = createClient({ url: `redis://${HOST}:${PORT}` });
  client.on('error', () => {});
  await client.connect();
  const store = new RedisStore({ client, prefix: 'app:', ttl: 100 });
  const app = express();
  app.use(session({ store, secret: 'keyboard cat', resave: false, saveUninitialized: false }));
  app.get('/visit', (request, response) => {
    request.session.visits = (request.session.visits || 0) + 1;
    response.send(String(request.session.visits));
  });
  app.get('/leave', (request, response) => request.session.destroy(() => response.send('left')));
  const listening = await new Promise((done) => { const one = app.listen(0, '127.0.0.1', () => done(one)); });
  const ask = async (path, visitor) => {
    const response = await fetch(`http://127.0.0.1:${listening.address().port}${path}`, { headers: { cookie: visitor.cookie || '' } });
    const given = response.headers.get('set-cookie');
    if (given) visitor.cookie = given.split(';')[0];
    return response.text();
  };
  const visitors = range(30).map(() => ({}));

  await check('sessions of many visitors', async () => {
    for (const n of range(3)) for (const visitor of visitors) equal(await ask('/visit', visitor), String(n + 1));
    equal((await store.ids()).length, 30);
    equal(await store.length(), 30);
    const all = await store.all();
    equal(all.map((one) => one.visits), range(30).map(() => 3));
    const ttl = await client.ttl(`app:${(await store.ids())[0]}`);
    if (ttl < 90 || ttl > 100) throw new Error(`TTL ${ttl}`);
  });

  await check('destroy and clear', async () => {
    equal(await ask('/leave', visitors[0]), 'left');
    equal(await store.length(), 29);
    await store.clear();
    equal(await store.length(), 0);
  });

  await check('goes on after a restart', async () => {
    await restart();
    await until(() => client.ping().catch(() => false), 'an answer');
    const visitor = {};
    equal(await ask('/visit', visitor), '1');
    equal(await ask('/visit', visitor), '2');
  }, 60000);
});
