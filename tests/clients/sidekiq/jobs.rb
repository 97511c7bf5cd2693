# What the Sidekiq server and the program share. Jobs leave their results in Redis.
require 'sidekiq'
require 'redis-namespace'

# One slot for all of Sidekiq's keys: BRPOP of several queues, MULTI for its heartbeat and its counters.
URL = "redis://#{ENV.fetch('PROXY_HOST')}:#{ENV.fetch('PROXY_PORT')}/0".freeze
OPTIONS = { url: URL, namespace: '{sidekiq}' }.freeze
Sidekiq.configure_server do |config|
  config.redis = OPTIONS
  config.average_scheduled_poll_interval = 1
  config.logger.level = Logger::WARN
end
Sidekiq.configure_client { |config| config.redis = OPTIONS }

RESULTS = ConnectionPool.new(size: 5) { Redis.new(url: URL) } # under keys of all slots

class Double
  include Sidekiq::Worker
  def perform(n)
    RESULTS.with { |redis| redis.rpush("done:#{n}", 2 * n) }
  end
end

class Flaky
  include Sidekiq::Worker
  sidekiq_options retry: 5
  sidekiq_retry_in { 1 }
  def perform(name)
    tries = RESULTS.with { |redis| redis.incr("tries:#{name}") }
    raise 'not yet' if tries < 3
  end
end

class Doomed
  include Sidekiq::Worker
  sidekiq_options retry: 0
  def perform
    raise 'never'
  end
end
