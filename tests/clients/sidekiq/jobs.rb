# What the Sidekiq server and the program share. Jobs leave their results in Redis.
require 'sidekiq'

URL = "redis://#{ENV.fetch('PROXY_HOST')}:#{ENV.fetch('PROXY_PORT')}/0".freeze
Sidekiq.configure_server do |config|
  config.redis = { url: URL }
  config.average_scheduled_poll_interval = 1
  config.logger.level = Logger::WARN
end
Sidekiq.configure_client { |config| config.redis = { url: URL } }

class Double
  include Sidekiq::Worker
  def perform(n)
    Sidekiq.redis { |redis| redis.rpush("done:#{n}", 2 * n) }
  end
end

class Flaky
  include Sidekiq::Worker
  sidekiq_options retry: 5
  sidekiq_retry_in { 1 }
  def perform(name)
    tries = Sidekiq.redis { |redis| redis.incr("tries:#{name}") }
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
