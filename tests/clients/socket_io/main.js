// Three servers in this process that know each other only by Redis, and two sockets at each.
'use strict';
const { HOST, PORT, NotTried, report, check, equal, until, restart, main, range, versionOf } = require('checks');
const http = require('http');
const { Server } = require('socket.io');
const { io: connectTo } = require('socket.io-client');
const { createClient } = require('redis');
const { createAdapter, createShardedAdapter } = require('@socket.io/redis-adapter');
const streams = require('@socket.io/redis-streams-adapter');
const { Emitter } = require('@socket.io/redis-emitter');

const KIND = process.env.ADAPTER;
async function connect() {
  const client = createClient({ url: `redis://${HOST}:${PORT}` });
  client.on('error', () => {});
  return client.connect();
}

const adapters = {
  classic: async () => createAdapter(await connect(), await connect()),
  sharded: async () => createShardedAdapter(await connect(), await connect()),
  streams: async () => streams.createAdapter(await connect()),
};

async function server() {
  const listening = http.createServer();
  const io = new Server(listening, { adapter: await adapters[KIND]() });
  io.on('connection', (socket) => {
    socket.on('join', (room, done) => Promise.resolve(socket.join(room)).then(() => done()));
    socket.on('ask', (question, answer) => answer(`${question}!`));
  });
  await new Promise((done) => listening.listen(0, '127.0.0.1', done));
  return { io, url: `http://127.0.0.1:${listening.address().port}` };
}

async function client(url) {
  const socket = connectTo(url, { transports: ['websocket'] });
  socket.got = [];
  socket.on('message', (text) => socket.got.push(text));
  socket.on('question', (text, answer) => answer(text + socket.id));
  await new Promise((done, fail) => { socket.on('connect', done); socket.on('connect_error', fail); });
  return socket;
}

main(async () => {
  const name = KIND === 'streams' ? '@socket.io/redis-streams-adapter' : '@socket.io/redis-adapter';
  report(name, versionOf(name));
  const servers = await Promise.all(range(3).map(server));
  const sockets = await Promise.all(range(6).map((n) => client(servers[n % 3].url)));
  const heard = (text) => sockets.map((socket) => socket.got.filter((got) => got === text).length);

  await check('servers find each other', async () => {
    await until(async () => (await servers[0].io.fetchSockets()).length === 6, 'all sockets are seen', 20000);
  });

  await check('broadcast to everybody', async () => {
    servers[0].io.emit('message', 'all');
    await until(() => heard('all').every(Boolean), 'heard by everybody');
    equal(heard('all'), [1, 1, 1, 1, 1, 1]);
  });

  await check('rooms', async () => {
    for (const n of [0, 1, 2]) await new Promise((done) => sockets[n].emit('join', 'room', done));
    await until(async () => (await servers[2].io.in('room').fetchSockets()).length === 3, 'all are in the room');
    servers[1].io.to('room').emit('message', 'room');
    await until(() => heard('room').filter(Boolean).length === 3, 'heard in the room');
    equal(heard('room'), [1, 1, 1, 0, 0, 0]);
  });

  await check('answers of all sockets', async () => {
    const answers = await servers[1].io.timeout(10000).emitWithAck('question', 'who? ');
    equal(answers.sort(), sockets.map((socket) => `who? ${socket.id}`).sort());
  });

  await check('from server to server', async () => {
    const got = [];
    servers.forEach(({ io }, n) => io.on('hello', (text) => got.push([n, text])));
    servers[0].io.serverSideEmit('hello', 'there');
    await until(() => got.length >= 2, 'the other two');
    equal(got.sort(), [[1, 'there'], [2, 'there']]);
  });

  await check('remote join and leave', async () => {
    servers[0].io.in(sockets[5].id).socketsJoin('far');
    await until(async () => (await servers[1].io.in('far').fetchSockets()).length === 1, 'joined');
    servers[0].io.in('far').socketsLeave('far');
    await until(async () => (await servers[1].io.in('far').fetchSockets()).length === 0, 'left');
  });

  await check('the emitter of a process without sockets', async () => {
    if (KIND !== 'classic') throw new NotTried('it is for redis-adapter');
    new Emitter(await connect()).emit('message', 'emitted');
    await until(() => heard('emitted').every(Boolean), 'heard by everybody');
  });

  await check('goes on after a restart', async () => {
    await restart();
    let n = 0;
    await until(async () => {
      servers[0].io.emit('message', `after ${n++}`);
      return sockets.every((socket) => socket.got.some((text) => text.startsWith('after')));
    }, 'heard by everybody again', 30000);
  }, 60000);
});
