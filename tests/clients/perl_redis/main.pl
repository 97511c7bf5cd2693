# The modules Redis and Redis::Fast, which have one interface; $MODULE says which.
use strict;
use warnings;
use Checks;
use Digest::SHA 'sha1_hex';

my $module = $ENV{MODULE};
eval "require $module; 1" or die $@;

sub connection {
    return $module->new(server => "$HOST:$PORT", reconnect => 20, every => 100_000, read_timeout => 15, @_);
}

report($module, $module->VERSION);
my @keys  = 0 .. 59;
my $redis = connection();

check('strings', sub {
    equal($redis->set("s:$_", "v$_"), 'OK') for @keys;
    equal([$redis->mget(map {"s:$_"} @keys)], [map {"v$_"} @keys]);
    equal($redis->mset(map { ("m:$_", $_) } @keys), 'OK');
    equal($redis->incrby('m:7', 5), 12);
    equal($redis->set('s:nx', 'a', 'EX', 100, 'NX'), 'OK');
    equal(scalar $redis->set('s:nx', 'b', 'NX'), undef);
    equal($redis->del(map {"m:$_"} @keys), 60);
    my $binary = "\0\r\n\xff\$*";
    $redis->set($binary, $binary);
    die 'not the binary value' if $redis->get($binary) ne $binary;
});

check('hashes', sub {
    $redis->hmset("h:$_", a => $_, b => 'x') for @keys;
    equal({$redis->hgetall("h:$_")}, {a => $_, b => 'x'}) for @keys;
    equal($redis->hincrby('h:5', 'a', 2), 7);
});

check('pipelines', sub {
    my %got;
    for my $n (0 .. 999) {
        $redis->set("p:$n", $n, sub { });
        $redis->get("p:$n", sub { $got{$n} = $_[0] });
    }
    $redis->wait_all_responses;
    equal(\%got, {map { $_ => $_ } 0 .. 999});
});

check('MULTI', sub {
    for my $n (@keys) {
        $redis->multi;
        equal($redis->set("{tx:$n}a", $n), 'QUEUED');
        $redis->incr("{tx:$n}a");
        $redis->get("{tx:$n}a");
        equal([$redis->exec], ['OK', $n + 1, $n + 1]);
    }
});

check('WATCH loops', sub {
    my $add = sub {
        my $own = connection();
        for (1 .. 30) {
            for my $key (qw(w:1 w:2 w:3)) {
                while (1) {
                    $own->watch($key);
                    my $value = ($own->get($key) || 0) + 1;
                    $own->multi;
                    $own->set($key, $value);
                    my @done = $own->exec;
                    last if @done && defined $done[0];
                }
            }
        }
    };
    my @children = (beside($add), beside($add));
    $add->();
    waitpid $_, 0 for @children;
    equal([$redis->mget(qw(w:1 w:2 w:3))], [90, 90, 90]);
});

check('Lua by EVALSHA', sub {
    my $script = "return redis.call('incrby', KEYS[1], ARGV[1] * 2)";
    my $sha    = $redis->script_load($script);
    equal($sha, sha1_hex($script));
    equal($redis->evalsha($sha, 1, "l:$_", $_), 2 * $_) for @keys;
});

check('blocking pops', sub {
    for my $n (0 .. 2) {
        my $pid = beside(sub { connection()->rpush("b:$n", "item$n") });
        equal([$redis->blpop("b:$n", 10)], ["b:$n", "item$n"]);
        waitpid $pid, 0;
    }
    equal(scalar $redis->brpop('b:none', 1), undef);
    my $pid = beside(sub { connection()->rpush('{b}1', 'x') });
    equal($redis->brpoplpush('{b}1', '{b}2', 5), 'x');
    waitpid $pid, 0;
});

check('streams with consumer groups', sub {
    for my $n (0 .. 8) {
        equal($redis->xgroup('CREATE', "x:$n", 'g', '0', 'MKSTREAM'), 'OK');
        my $id   = $redis->xadd("x:$n", '*', 'a', $n);
        my @read = $redis->xreadgroup('GROUP', 'g', 'c', 'STREAMS', "x:$n", '>');
        equal(\@read, [["x:$n", [[$id, ['a', $n]]]]]);
        equal($redis->xack("x:$n", 'g', $id), 1);
    }
});

check('streams that block', sub {
    $redis->xgroup('CREATE', 'xb', 'g', '$', 'MKSTREAM');
    my $pid  = beside(sub { connection()->xadd('xb', '*', 'a', 'b') });
    my @read = $redis->xreadgroup('GROUP', 'g', 'c', 'BLOCK', 10000, 'STREAMS', 'xb', '>');
    equal($read[0][1][0][1], ['a', 'b']);
    waitpid $pid, 0;
});

check('pub/sub', sub {
    my $sub = connection();
    my @got;
    my $on_message = sub { my ($message, $topic, $subscribed) = @_; push @got, [$topic, $message] };
    $sub->subscribe('ch:1', 'ch:2', $on_message);
    $sub->psubscribe('pat:*', $on_message);
    $redis->publish('ch:1', "m$_") for 0 .. 49;
    $redis->publish('pat:x', 'p');
    my $end = time + 10;
    $sub->wait_for_messages(0.1) while @got < 51 && time < $end;
    equal(\@got, [(map { ['ch:1', "m$_"] } 0 .. 49), ['pat:x', 'p']]);
    $sub->unsubscribe('ch:1', 'ch:2', $on_message);
    $sub->punsubscribe('pat:*', $on_message);
    equal($sub->set('after', 1), 'OK');
});

check('SCAN iterators', sub {
    $redis->mset(map { ("scan:$_", $_) } 0 .. 499);
    my ($cursor, $page, %found) = (0);
    do {
        ($cursor, $page) = $redis->scan($cursor, 'MATCH', 'scan:*', 'COUNT', 50);
        $found{$_} = 1 for @$page;
    } while ($cursor ne '0');
    equal(scalar(keys %found), 500);
});

check('INFO and KEYS', sub {
    equal(scalar(my @names = $redis->keys('scan:*')), 500);
    equal($redis->info->{redis_mode}, 'standalone') if $redis->info->{redis_mode};
    die 'no version' unless $redis->info->{redis_version};
});

check('reconnect after a restart', sub {
    restart();
    equal($redis->set("r:$_", $_), 'OK') for @keys;
    equal([$redis->mget(map {"r:$_"} @keys)], [@keys]);
}, 60);
