<?php
declare(strict_types=1);
error_reporting(E_ALL & ~E_DEPRECATED); // it is older than this PHP
require __DIR__ . '/../lib/checks.php';
require 'Predis/autoload.php';

function connection(array $options = []): Predis\Client
{
    return new Predis\Client(['host' => HOST, 'port' => PORT, 'read_write_timeout' => 15], $options);
}

report('predis', Predis\Client::VERSION);
$keys = range(0, 59);
$redis = connection();

check('strings', function () use ($redis, $keys) {
    foreach ($keys as $n) {
        equal((string) $redis->set("s:$n", "v$n"), 'OK');
    }
    equal($redis->mget(array_map(fn($n) => "s:$n", $keys)), array_map(fn($n) => "v$n", $keys));
    equal((string) $redis->mset(array_combine(array_map(fn($n) => "m:$n", $keys), $keys)), 'OK');
    equal($redis->incrby('m:7', 5), 12);
    equal($redis->set('s:nx', 'a', 'EX', 100, 'NX')->getPayload(), 'OK');
    equal($redis->set('s:nx', 'b', 'NX'), null);
    equal($redis->del(array_map(fn($n) => "m:$n", $keys)), 60);
});

check('hashes', function () use ($redis, $keys) {
    foreach ($keys as $n) {
        $redis->hmset("h:$n", ['a' => (string) $n, 'b' => 'x']);
        equal($redis->hgetall("h:$n"), ['a' => (string) $n, 'b' => 'x']);
    }
    equal($redis->hincrby('h:5', 'a', 2), 7);
});

check('pipelines', function () use ($redis) {
    $replies = $redis->pipeline(function ($pipe) {
        foreach (range(0, 999) as $n) {
            $pipe->set("p:$n", $n);
            $pipe->get("p:$n");
        }
    });
    foreach (range(0, 999) as $n) {
        equal($replies[2 * $n + 1], (string) $n);
    }
});

check('MULTI', function () use ($redis, $keys) {
    foreach ($keys as $n) {
        $replies = $redis->transaction()->set("{tx:$n}a", $n)->incr("{tx:$n}a")->get("{tx:$n}a")->execute();
        equal([(string) $replies[0], $replies[1], $replies[2]], ['OK', $n + 1, (string) ($n + 1)]);
    }
});

check('an atomic pipeline', function () use ($redis) {
    $replies = $redis->pipeline(['atomic' => true], function ($pipe) {
        $pipe->set('{ap}a', 1);
        $pipe->incr('{ap}a');
    });
    equal($replies[1], 2);
});

check('WATCH loops', function () use ($redis) {
    $add = function () {
        $own = connection();
        foreach (range(1, 30) as $_) {
            foreach (['w:1', 'w:2', 'w:3'] as $key) {
                $options = ['cas' => true, 'watch' => $key, 'retry' => 1000];
                $own->transaction($options, function ($transaction) use ($key) {
                    $value = (int) $transaction->get($key) + 1;
                    $transaction->multi();
                    $transaction->set($key, $value);
                });
            }
        }
    };
    $children = [beside($add), beside($add)];
    $add();
    foreach ($children as $pid) {
        pcntl_waitpid($pid, $status);
    }
    equal($redis->mget(['w:1', 'w:2', 'w:3']), ['90', '90', '90']);
});

class Doubled extends Predis\Command\ScriptCommand
{
    public function getKeysCount()
    {
        return 1;
    }

    public function getScript()
    {
        return "return redis.call('incrby', KEYS[1], ARGV[1] * 2)";
    }
}

check('Lua by EVALSHA', function () use ($redis, $keys) {
    $redis->getProfile()->defineCommand('doubled', 'Doubled');
    foreach ($keys as $n) {
        equal($redis->doubled("l:$n", $n), 2 * $n);
    }
    $redis->script('flush');
    foreach ($keys as $n) {
        equal($redis->doubled("l:$n", $n), 4 * $n);
    }
});

check('blocking pops', function () use ($redis) {
    foreach (range(0, 2) as $n) {
        $pid = beside(fn() => connection()->rpush("b:$n", ["item$n"]));
        equal($redis->blpop(["b:$n"], 10), ["b:$n", "item$n"]);
        pcntl_waitpid($pid, $status);
    }
    equal($redis->brpop(['b:none'], 1), null);
    $pid = beside(fn() => connection()->rpush('{b}1', ['x']));
    equal($redis->brpoplpush('{b}1', '{b}2', 5), 'x');
    pcntl_waitpid($pid, $status);
});

check('streams with consumer groups', function () use ($redis) {
    foreach (range(0, 8) as $n) {
        $redis->executeRaw(['XGROUP', 'CREATE', "x:$n", 'g', '0', 'MKSTREAM']);
        $id = $redis->executeRaw(['XADD', "x:$n", '*', 'a', (string) $n]);
        $read = $redis->executeRaw(['XREADGROUP', 'GROUP', 'g', 'c', 'STREAMS', "x:$n", '>']);
        equal($read, [["x:$n", [[$id, ['a', (string) $n]]]]]);
        equal($redis->executeRaw(['XACK', "x:$n", 'g', $id]), 1);
    }
});

check('pub/sub', function () {
    $pid = beside(function () {
        $publisher = connection();
        foreach (range(0, 49) as $n) {
            $publisher->publish('ch:1', "m$n");
        }
        $publisher->publish('pat:x', 'end');
    });
    $loop = connection()->pubSubLoop(['subscribe' => ['ch:1'], 'psubscribe' => ['pat:*']]);
    $got = [];
    foreach ($loop as $message) {
        if ($message->kind === 'message' || $message->kind === 'pmessage') {
            $got[] = $message->payload;
        }
        if ($message->kind === 'pmessage') {
            $loop->unsubscribe();
            $loop->punsubscribe();
        }
    }
    pcntl_waitpid($pid, $status);
    equal($got, [...array_map(fn($n) => "m$n", range(0, 49)), 'end']);
});

check('SCAN iterators', function () use ($redis) {
    $redis->mset(array_combine(array_map(fn($n) => "scan:$n", range(0, 499)), range(0, 499)));
    $found = iterator_to_array(new Predis\Collection\Iterator\Keyspace($redis, 'scan:*', 50), false);
    equal(count(array_unique($found)), 500);
    $redis->hmset('scanned', array_combine(array_map(fn($n) => "f$n", range(0, 599)), range(0, 599)));
    equal(count(iterator_to_array(new Predis\Collection\Iterator\HashKey($redis, 'scanned'))), 600);
});

check('MONITOR', function () {
    $pid = beside(fn() => connection()->set('monitored', '1'));
    $monitor = connection()->monitor();
    foreach ($monitor as $event) {
        if (strtoupper($event->command) === 'SET') {
            equal($event->arguments, '"monitored" "1"');
            $monitor->stop();
        }
    }
    pcntl_waitpid($pid, $status);
});

check('reconnect after a restart', function () use ($redis, $keys) {
    restart();
    try {
        $redis->ping(); // it does not try again by itself: the application does, after it was told
        throw new LogicException('the lost connection was not told');
    } catch (Predis\Connection\ConnectionException) {
        $redis->disconnect();
    }
    foreach ($keys as $n) {
        equal((string) $redis->set("r:$n", $n), 'OK');
    }
    equal($redis->mget(array_map(fn($n) => "r:$n", $keys)), array_map('strval', $keys));
});
