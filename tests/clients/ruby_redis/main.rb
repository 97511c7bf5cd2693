require 'checks'
require 'redis'
require 'set'

KEYS = (0...60).to_a
def connection(**options)
  Redis.new(host: HOST, port: PORT, timeout: 15, **options)
end

report('redis', Redis::VERSION)
redis = connection
other = connection

check('strings') do
  KEYS.each { |n| equal(redis.set("s:#{n}", "v#{n}"), 'OK') }
  equal(redis.mget(KEYS.map { |n| "s:#{n}" }), KEYS.map { |n| "v#{n}" })
  equal(redis.mapped_mset(KEYS.to_h { |n| ["m:#{n}", n] }), 'OK')
  equal(redis.incrby('m:7', 5), 12)
  equal(redis.set('s:nx', 'a', nx: true, ex: 100), true)
  equal(redis.set('s:nx', 'b', nx: true), false)
  equal(redis.del(*KEYS.map { |n| "m:#{n}" }), 60)
  equal(redis.exists('s:1', 's:2', 'nosuch'), 2)
  equal(redis.exists?('s:1'), true)
end

check('hashes') do
  KEYS.each { |n| equal(redis.hset("h:#{n}", { 'a' => n, 'b' => 'x' }), 2) }
  KEYS.each { |n| equal(redis.hgetall("h:#{n}"), { 'a' => n.to_s, 'b' => 'x' }) }
  equal(redis.hincrby('h:5', 'a', 2), 7)
end

check('pipelines') do
  replies = redis.pipelined do |pipeline|
    1000.times do |n|
      pipeline.set("p:#{n}", n)
      pipeline.get("p:#{n}")
    end
  end
  equal(replies.each_slice(2).map(&:last), (0...1000).map(&:to_s))
end

check('MULTI') do
  KEYS.each do |n|
    replies = redis.multi do |transaction|
      transaction.set("{tx:#{n}}a", n)
      transaction.incr("{tx:#{n}}a")
      transaction.get("{tx:#{n}}a")
    end
    equal(replies, ['OK', n + 1, (n + 1).to_s])
  end
end

check('WATCH loops') do
  add = lambda do
    own = connection
    30.times do
      %w[w:1 w:2 w:3].each do |key|
        loop do
          done = own.watch(key) do
            value = own.get(key).to_i + 1
            own.multi { |transaction| transaction.set(key, value) }
          end
          break if done
        end
      end
    end
  end
  3.times.map { Thread.new(&add) }.each(&:join)
  equal(redis.mget('w:1', 'w:2', 'w:3'), %w[90 90 90])
end

check('Lua by EVALSHA') do
  sha = redis.script(:load, "return redis.call('incrby', KEYS[1], ARGV[1] * 2)")
  KEYS.each { |n| equal(redis.evalsha(sha, keys: ["l:#{n}"], argv: [n]), 2 * n) }
  equal(redis.script(:exists, sha), true)
end

check('blocking pops') do
  9.times do |n|
    pusher = Thread.new { sleep 0.02; other.rpush("b:#{n}", "item#{n}") }
    equal(redis.blpop("b:#{n}", timeout: 10), ["b:#{n}", "item#{n}"])
    pusher.join
  end
  equal(redis.brpop('b:none', timeout: 0.1), nil)
  pusher = Thread.new { sleep 0.02; other.rpush('{b}1', 'x') }
  equal(redis.blmove('{b}1', '{b}2', 'LEFT', 'RIGHT', timeout: 5), 'x')
  pusher.join
  pusher = Thread.new { sleep 0.02; other.zadd('b:z', 1, 'm') }
  equal(redis.bzpopmin('b:z', timeout: 5), ['b:z', 'm', 1.0])
  pusher.join
end

check('streams with consumer groups') do
  9.times do |n|
    equal(redis.xgroup(:create, "x:#{n}", 'g', '0', mkstream: true), 'OK')
    ids = 3.times.map { |i| redis.xadd("x:#{n}", { 'i' => i.to_s }) }
    read = redis.xreadgroup('g', 'c', "x:#{n}", '>', count: 2)
    equal(read, { "x:#{n}" => [[ids[0], { 'i' => '0' }], [ids[1], { 'i' => '1' }]] })
    equal(redis.xack("x:#{n}", 'g', ids[0]), 1)
    equal(redis.xpending("x:#{n}", 'g')['size'], 1)
    equal(redis.xautoclaim("x:#{n}", 'g', 'd', 0, '0')['entries'].map(&:first), [ids[1]])
  end
end

check('streams that block') do
  redis.xgroup(:create, 'xb', 'g', '$', mkstream: true)
  id = nil
  pusher = Thread.new { sleep 0.02; id = other.xadd('xb', { 'a' => 'b' }) }
  read = redis.xreadgroup('g', 'c', 'xb', '>', block: 10_000)
  pusher.join
  equal(read, { 'xb' => [[id, { 'a' => 'b' }]] })
end

check('pub/sub') do
  got = []
  subscribed = Queue.new
  sub = connection
  reader = Thread.new do
    sub.subscribe('ch:1', 'ch:2') do |on|
      on.subscribe { |_channel, count| subscribed << count }
      on.message do |channel, message|
        got << message
        sub.unsubscribe if channel == 'ch:2'
      end
    end
    sub.set('after', '1')
  end
  reader.report_on_exception = false
  wait_until('subscribed') { subscribed.size == 2 || !reader.alive? }
  50.times { |n| other.publish('ch:1', "m#{n}") }
  other.publish('ch:2', 'end')
  equal(reader.value, 'OK')
  equal(got, (0...50).map { |n| "m#{n}" } + ['end'])
end

check('pub/sub by patterns') do
  sub = connection
  ready = Queue.new
  reader = Thread.new do
    seen = nil
    sub.psubscribe('pat:*') do |on|
      on.psubscribe { ready << 1 }
      on.pmessage { |*words| seen = words; sub.punsubscribe }
    end
    seen
  end
  reader.report_on_exception = false
  wait_until('subscribed') { ready.size == 1 || !reader.alive? }
  other.publish('pat:x', 'm')
  equal(reader.value, %w[pat:* pat:x m])
end

check('SCAN iterators') do
  redis.mapped_mset((0...500).to_h { |n| ["scan:#{n}", n] })
  equal(redis.scan_each(match: 'scan:*', count: 50).to_set.size, 500)
  redis.hset('scanned', (0...600).to_h { |n| ["f#{n}", n] })
  equal(redis.hscan_each('scanned', count: 100).to_a.size, 600)
end

check('MONITOR') do
  watcher = connection
  seen = nil
  reader = Thread.new { watcher.monitor { |line| (seen = line) && break if line.include?('"monitored"') } }
  reader.report_on_exception = false
  wait_until('the command is shown', 5) do
    other.set('monitored', '1')
    seen || !reader.alive?
  end
  reader.value
  raise 'not shown' unless seen
end

check('reconnect after a restart', 60) do
  redis.set('r', 'x')
  restart
  KEYS.each { |n| equal(redis.set("r:#{n}", n), 'OK') }
  equal(redis.mget(KEYS.map { |n| "r:#{n}" }), KEYS.map(&:to_s))
end
