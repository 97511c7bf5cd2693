<?php
declare(strict_types=1);
require __DIR__ . '/../lib/checks.php';

function connection(): Redis
{
    $redis = new Redis();
    $redis->connect(HOST, PORT, 10.0);
    $redis->setOption(Redis::OPT_READ_TIMEOUT, 15);
    return $redis;
}

report('phpredis', phpversion('redis'));
$keys = range(0, 59);
$redis = connection();
$other = connection();

check('strings', function () use ($redis, $keys) {
    foreach ($keys as $n) {
        equal($redis->set("s:$n", "v$n"), true);
    }
    equal($redis->mGet(array_map(fn($n) => "s:$n", $keys)), array_map(fn($n) => "v$n", $keys));
    equal($redis->mSet(array_combine(array_map(fn($n) => "m:$n", $keys), array_map('strval', $keys))), true);
    equal($redis->incrBy('m:7', 5), 12);
    equal($redis->set('s:nx', 'a', ['nx', 'ex' => 100]), true);
    equal($redis->set('s:nx', 'b', ['nx']), false);
    equal($redis->del(array_map(fn($n) => "m:$n", $keys)), 60);
    equal($redis->exists(['s:1', 's:2', 'nosuch']), 2);
    $binary = "\0\r\n\xff$*";
    equal($redis->set($binary, $binary), true);
    equal($redis->get($binary), $binary);
});

check('hashes', function () use ($redis, $keys) {
    foreach ($keys as $n) {
        equal($redis->hMSet("h:$n", ['a' => (string) $n, 'b' => 'x']), true);
        equal($redis->hGetAll("h:$n"), ['a' => (string) $n, 'b' => 'x']);
    }
    equal($redis->hIncrBy('h:5', 'a', 2), 7);
});

check('serializer', function () {
    $redis = connection();
    $redis->setOption(Redis::OPT_SERIALIZER, Redis::SERIALIZER_PHP);
    $redis->setOption(Redis::OPT_PREFIX, 'app:');
    equal($redis->set('object', ['a' => [1, 2.5, null]]), true);
    equal($redis->get('object'), ['a' => [1, 2.5, null]]);
});

check('pipelines', function () use ($redis) {
    $pipe = $redis->multi(Redis::PIPELINE);
    foreach (range(0, 999) as $n) {
        $pipe->set("p:$n", (string) $n)->get("p:$n");
    }
    $replies = $pipe->exec();
    foreach (range(0, 999) as $n) {
        equal($replies[2 * $n + 1], (string) $n);
    }
});

check('MULTI', function () use ($redis, $keys) {
    foreach ($keys as $n) {
        $replies = $redis->multi()->set("{tx:$n}a", (string) $n)->incr("{tx:$n}a")->get("{tx:$n}a")->exec();
        equal($replies, [true, $n + 1, (string) ($n + 1)]);
    }
    $redis->multi()->set('{tx}u', '1');
    equal($redis->discard(), true);
    equal($redis->exists('{tx}u'), 0);
});

check('WATCH loops', function () use ($redis) {
    $add = function () {
        $own = connection();
        foreach (range(1, 30) as $_) {
            foreach (['w:1', 'w:2', 'w:3'] as $key) {
                do {
                    $own->watch($key);
                    $value = (int) $own->get($key) + 1;
                } while (!$own->multi()->set($key, (string) $value)->exec());
            }
        }
    };
    $children = [beside($add), beside($add)];
    $add();
    foreach ($children as $pid) {
        pcntl_waitpid($pid, $status);
    }
    equal($redis->mGet(['w:1', 'w:2', 'w:3']), ['90', '90', '90']);
});

check('Lua by EVALSHA', function () use ($redis, $keys) {
    $script = "return redis.call('incrby', KEYS[1], ARGV[1] * 2)";
    $sha = $redis->script('load', $script);
    equal($sha, sha1($script));
    foreach ($keys as $n) {
        equal($redis->evalSha($sha, ["l:$n", $n], 1), 2 * $n);
    }
    equal($redis->script('exists', $sha, sha1('nosuch')), [1, 0]);
});

check('blocking pops', function () use ($redis) {
    foreach (range(0, 2) as $n) {
        $pid = beside(fn() => connection()->rPush("b:$n", "item$n"));
        equal($redis->blPop(["b:$n"], 10), ["b:$n", "item$n"]);
        pcntl_waitpid($pid, $status);
    }
    equal($redis->brPop(['b:none'], 1), []);
    $pid = beside(fn() => connection()->rPush('{b}1', 'x'));
    equal($redis->brpoplpush('{b}1', '{b}2', 5), 'x');
    pcntl_waitpid($pid, $status);
});

check('streams with consumer groups', function () use ($redis) {
    foreach (range(0, 8) as $n) {
        equal($redis->xGroup('CREATE', "x:$n", 'g', '0', true), true);
        $ids = array_map(fn($i) => $redis->xAdd("x:$n", '*', ['i' => (string) $i]), range(0, 2));
        $read = $redis->xReadGroup('g', 'c', ["x:$n" => '>'], 2);
        equal($read, ["x:$n" => [$ids[0] => ['i' => '0'], $ids[1] => ['i' => '1']]]);
        equal($redis->xAck("x:$n", 'g', [$ids[0]]), 1);
        equal($redis->xPending("x:$n", 'g')[0], 1);
    }
});

check('streams that block', function () use ($redis) {
    $redis->xGroup('CREATE', 'xb', 'g', '$', true);
    $pid = beside(fn() => connection()->xAdd('xb', '*', ['a' => 'b']));
    equal(array_values($redis->xReadGroup('g', 'c', ['xb' => '>'], 1, 10000)['xb']), [['a' => 'b']]);
    pcntl_waitpid($pid, $status);
});

check('pub/sub', function () use ($other) {
    $pid = beside(function () {
        $publisher = connection();
        foreach (range(0, 49) as $n) {
            $publisher->publish('ch:1', "m$n");
        }
        $publisher->publish('ch:2', 'end');
    });
    $got = [];
    $sub = connection();
    try {
        $sub->subscribe(['ch:1', 'ch:2'], function ($redis, $channel, $message) use (&$got) {
            $got[] = $message;
            if ($channel === 'ch:2') {
                $redis->close(); // its way out of the loop
            }
        });
    } catch (RedisException) {
    }
    pcntl_waitpid($pid, $status);
    equal($got, [...array_map(fn($n) => "m$n", range(0, 49)), 'end']);
});

check('SCAN iterators', function () use ($redis) {
    $redis->mSet(array_combine(array_map(fn($n) => "scan:$n", range(0, 499)), array_map('strval', range(0, 499))));
    $redis->setOption(Redis::OPT_SCAN, Redis::SCAN_RETRY);
    $found = [];
    $cursor = null;
    while ($page = $redis->scan($cursor, 'scan:*', 50)) {
        $found = array_merge($found, $page);
    }
    equal(count(array_unique($found)), 500);
    $redis->hMSet('scanned', array_combine(array_map(fn($n) => "f$n", range(0, 599)), range(0, 599)));
    $fields = 0;
    $cursor = null;
    while ($page = $redis->hScan('scanned', $cursor)) {
        $fields += count($page);
    }
    equal($fields, 600);
});

check('sessions (session.save_handler = redis)', function () use ($redis) {
    ini_set('session.save_handler', 'redis');
    ini_set('session.save_path', 'tcp://' . HOST . ':' . PORT);
    ini_set('redis.session.locking_enabled', '1');
    ini_set('session.use_cookies', '0');
    ini_set('session.cache_limiter', '');
    foreach (range(0, 8) as $n) {
        session_id("session-$n");
        equal(session_start(), true);
        $_SESSION['visits'] = ($_SESSION['visits'] ?? 0) + 1;
        session_write_close();
        session_start();
        equal(++$_SESSION['visits'], 2);
        session_write_close();
        equal($redis->get("PHPREDIS_SESSION:session-$n"), 'visits|i:2;');
        equal($redis->exists("PHPREDIS_SESSION:session-{$n}_LOCK"), 0);
    }
});

check('reconnect after a restart', function () use ($redis, $keys) {
    $persistent = new Redis();
    $persistent->pconnect(HOST, PORT);
    $persistent->set('r', 'x');
    restart();
    foreach ($keys as $n) {
        equal($redis->set("r:$n", (string) $n), true);
    }
    equal($redis->mGet(array_map(fn($n) => "r:$n", $keys)), array_map('strval', $keys));
    equal($persistent->set('r', 'y'), true);
});
