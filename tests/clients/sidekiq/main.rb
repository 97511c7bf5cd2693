# A Sidekiq server in a process of its own, and its client and API here.
require 'checks'
require_relative 'jobs'
require 'sidekiq/api'

report('sidekiq', Sidekiq::VERSION)
server = spawn('sidekiq', '-r', './jobs.rb', '-c', '5', '-q', 'critical', '-q', 'default', %i[out err] => '/dev/null')
at_exit { Process.kill('KILL', server) rescue nil }
$redis = Redis.new(url: URL, reconnect_attempts: 10, reconnect_delay: 0.2)

check('jobs of two queues', 45) do
  20.times { |n| Double.perform_async(n) }
  20.times { |n| Double.set(queue: 'critical').perform_async(n + 20) }
  wait_until('all jobs are done', 40) { (0...40).all? { |n| $redis.exists?("done:#{n}") } }
  equal((0...40).flat_map { |n| $redis.lrange("done:#{n}", 0, -1) }, (0...40).map { |n| (2 * n).to_s })
end

check('many at once') do
  Sidekiq::Client.push_bulk('class' => Double, 'args' => (100...200).map { |n| [n] })
  wait_until('all jobs are done') { (100...200).all? { |n| $redis.exists?("done:#{n}") } }
end

check('delays') do
  Double.perform_in(1, 500)
  equal(Sidekiq::ScheduledSet.new.size, 1)
  wait_until('it is done', 20) { $redis.exists?('done:500') }
  equal(Sidekiq::ScheduledSet.new.size, 0)
end

check('retries', 60) do
  Flaky.perform_async('a')
  wait_until('the third try', 50) { $redis.get('tries:a') == '3' }
end

check('the dead') do
  Doomed.perform_async
  wait_until('it failed') { Sidekiq::Stats.new.failed >= 3 }
  Sidekiq::DeadSet.new.clear
  equal(Sidekiq::DeadSet.new.size, 0)
end

check('its API') do
  wait_until('counted', 20) { Sidekiq::Stats.new.processed >= 145 }
  wait_until('its process', 20) { Sidekiq::ProcessSet.new.size == 1 }
  equal(Sidekiq::ProcessSet.new.first['concurrency'], 5)
  equal(Sidekiq::Queue.all.map(&:name).sort, %w[critical default])
  equal(Sidekiq::Queue.new.size, 0)
  job = Double.set(queue: 'unserved').perform_async(1)
  equal(Sidekiq::Queue.new('unserved').map(&:jid), [job])
  equal(Sidekiq::Queue.new('unserved').find_job(job).delete, true)
  raise 'no redis_info' unless Sidekiq.redis_info['redis_version']
end

check('goes on after a restart', 60) do
  restart
  wait_until('a push') { Double.perform_async(600) rescue false }
  wait_until('it is done', 30) { $redis.exists?('done:600') }
end

check('ends in order', 40) do
  Process.kill('TERM', server)
  Process.wait(server)
  equal($?.exitstatus, 0)
end
