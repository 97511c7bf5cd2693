// For programs in Node: report(name, version), then await check("strings", async () => {...}); each prints its line of
// JSON. A check that throws, or takes longer than its limit, is a failed one, and the program goes on.
'use strict';
const fs = require('fs');
const path = require('path');
const { exec } = require('child_process');
const { isDeepStrictEqual, inspect } = require('util');

const HOST = process.env.PROXY_HOST;
const PORT = Number(process.env.PROXY_PORT);
const SUBJECT = process.env.SUBJECT || 'given'; // proxy, plain or given
const CHECK_MS = 30000;

class NotTried extends Error {} // its message says why it cannot be tried here

const say = (report) => process.stdout.write(JSON.stringify(report) + '\n');
const report = (client, version) => say({ client, version });
const remark = (text) => say({ remark: text });
const sleep = (ms) => new Promise((done) => setTimeout(done, ms));

async function within(promise, ms, what) {
  let timer;
  const late = new Promise((_, fail) => {
    timer = setTimeout(() => fail(new Error(`not within ${ms} ms: ${what}`)), ms);
  });
  try {
    return await Promise.race([promise, late]);
  } finally {
    clearTimeout(timer);
  }
}

async function check(name, body, limitMs = CHECK_MS) {
  try {
    await within(Promise.resolve().then(body), limitMs, name);
    say({ check: name, ok: true });
  } catch (error) {
    if (error instanceof NotTried) {
      say({ check: name, ok: null, detail: error.message });
      return;
    }
    const stack = String((error && error.stack) || '').split('\n').find((line) => /main\.js:\d+/.test(line));
    const at = stack ? ` (${/main\.js:\d+/.exec(stack)[0]})` : '';
    say({ check: name, ok: false, detail: `${error}${at}` });
  }
}

function equal(got, wanted) {
  if (!isDeepStrictEqual(got, wanted)) throw new Error(`got ${inspect(got)}, not ${inspect(wanted)}`);
}

// Polls until condition() gives something true, and returns that.
async function until(condition, what, limitMs = 15000) {
  const end = Date.now() + limitMs;
  for (;;) {
    const value = await condition();
    if (value) return value;
    if (Date.now() > end) throw new Error(`not within ${limitMs} ms: ${what}`);
    await sleep(10);
  }
}

function act(name) {
  const command = process.env[name];
  if (!command) throw new NotTried(`no ${name.toLowerCase()} here`);
  return new Promise((done, fail) => exec(command, (error) => (error ? fail(error) : done())));
}
const restart = () => act('RESTART'); // of what is tested; resolves when it answers again
const failover = () => act('FAILOVER'); // resolves when the cluster is whole

// What every program ends with: connections that hang do not keep it.
function main(body) {
  process.on('unhandledRejection', (error) => say({ check: 'no unhandled rejection', ok: false, detail: String(error) }));
  body().then(
    () => process.exit(0),
    (error) => {
      console.error(error);
      process.exit(1);
    },
  );
}

// Of an installed package; some of them do not let their package.json be required.
function versionOf(name) {
  const folders = process.env.NODE_PATH.split(path.delimiter).map((folder) => path.join(folder, name, 'package.json'));
  return JSON.parse(fs.readFileSync(folders.find((file) => fs.existsSync(file)))).version;
}

const range = (count) => Array.from({ length: count }, (_, n) => n);
module.exports = {
  HOST, PORT, SUBJECT, NotTried, report, remark, check, equal, until, within, sleep, restart, failover, main, range,
  versionOf,
};
