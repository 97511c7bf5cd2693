# The stores of redis-rails (cache, Rack session), ActiveSupport's own cache store, and redis-store below them.
require 'checks'
require 'active_support'
require 'active_support/cache'
require 'redis-rails'
require 'redis-activesupport'
require 'redis-rack'
require 'rack/mock'
require 'active_support/notifications'

report('redis-rails', Gem.loaded_specs['redis-rails']&.version || `dpkg-query -W -f='${Version}' ruby-redis-rails`)

{
  "redis-rails' cache" => ActiveSupport::Cache::RedisStore.new("redis://#{HOST}:#{PORT}/0/cache"),
  "ActiveSupport's cache" => ActiveSupport::Cache::RedisCacheStore.new(url: "redis://#{HOST}:#{PORT}/0", namespace: 'own', reconnect_attempts: 3, error_handler: ->(exception:, **) { raise exception }),
}.each do |name, cache|
  check("#{name}: read, write, fetch") do
    60.times { |n| cache.write("k:#{n}", { 'n' => [n, 1.5, nil] }) }
    60.times { |n| equal(cache.read("k:#{n}"), { 'n' => [n, 1.5, nil] }) }
    equal(cache.fetch('computed') { 42 }, 42)
    equal(cache.fetch('computed') { 43 }, 42)
    cache.delete('computed')
    equal(cache.exist?('computed'), false)
  end

  check("#{name}: many at once") do
    values = (0...60).to_h { |n| ["m:#{n}", n] }
    values.each { |key, value| cache.write(key, value) }
    equal(cache.read_multi(*values.keys), values)
    equal(cache.fetch_multi('m:1', '{f}1', '{f}2') { |key| "made #{key}" }, { 'm:1' => 1, '{f}1' => 'made {f}1', '{f}2' => 'made {f}2' })
  end

  check("#{name}: counters and expiry") do
    cache.write('count', 1, raw: true)
    equal(cache.increment('count', 4), 5)
    equal(cache.decrement('count', 2), 3)
    cache.write('brief', 'x', expires_in: 1)
    wait_until('it expires') { cache.read('brief').nil? }
  end

  check("#{name}: delete_matched") do
    50.times { |n| cache.write("gone:#{n}", n) }
    cache.delete_matched('gone:*')
    equal((0...50).count { |n| cache.exist?("gone:#{n}") }, 0)
    equal(cache.read('k:7'), { 'n' => [7, 1.5, nil] })
  end
end

check('write_multi of ActiveSupport') do
  cache = ActiveSupport::Cache::RedisCacheStore.new(url: "redis://#{HOST}:#{PORT}/0")
  values = (0...60).to_h { |n| ["w:#{n}", "v#{n}"] }
  cache.write_multi(values)
  cache.write_multi(values, expires_in: 100)
  equal(cache.read_multi(*values.keys), values)
end

check('Rack sessions') do
  application = lambda do |env|
    session = env['rack.session']
    session['visits'] = (session['visits'] || 0) + 1
    session.destroy if env['PATH_INFO'] == '/leave'
    [200, {}, [session['visits'].to_s]]
  end
  rack = Rack::MockRequest.new(Rack::Session::Redis.new(application, redis_server: "redis://#{HOST}:#{PORT}/0/rack:session", expire_after: 100))
  cookies = 20.times.map { rack.get('/')['Set-Cookie'][/[^;]+/] }
  equal(cookies.uniq.size, 20)
  cookies.each { |cookie| equal(rack.get('/', 'HTTP_COOKIE' => cookie).body, '2') }
  rack.get('/leave', 'HTTP_COOKIE' => cookies[0])
  equal(rack.get('/', 'HTTP_COOKIE' => cookies[0]).body, '1')
  equal(rack.get('/', 'HTTP_COOKIE' => cookies[1]).body, '3')
end

check('goes on after a restart', 60) do
  cache = ActiveSupport::Cache::RedisCacheStore.new(url: "redis://#{HOST}:#{PORT}/0", reconnect_attempts: 3)
  cache.write('r', 1)
  restart
  wait_until('a value comes back') { cache.write('r', 2) && cache.read('r') == 2 }
end
