# For programs in Ruby: report(name, version), then check("strings") { ... }; each prints its line of JSON.
# A check that raises, or takes longer than its limit, is a failed one, and the program goes on.
require 'json'
require 'timeout'

HOST = ENV.fetch('PROXY_HOST')
PORT = Integer(ENV.fetch('PROXY_PORT'))

class NotTried < StandardError; end

def say(**report)
  $stdout.puts(JSON.generate(report))
  $stdout.flush
end

def report(client, version)
  say(client: client, version: version)
end

def check(name, limit_s = 30)
  Timeout.timeout(limit_s) { yield }
  say(check: name, ok: true)
rescue NotTried => e
  say(check: name, ok: nil, detail: e.message)
rescue StandardError, ScriptError => e
  at = (e.backtrace || []).find { |line| line.include?('main.rb') } || ''
  say(check: name, ok: false, detail: "#{e.class}: #{e.message} (#{at[/main\.rb:\d+/]})")
end

def equal(got, wanted)
  raise "got #{got.inspect}, not #{wanted.inspect}" unless got == wanted
end

def wait_until(what, limit_s = 15)
  deadline = Process.clock_gettime(Process::CLOCK_MONOTONIC) + limit_s
  until (value = yield)
    raise "not within #{limit_s} s: #{what}" if Process.clock_gettime(Process::CLOCK_MONOTONIC) > deadline

    sleep 0.01
  end
  value
end

def act(name)
  command = ENV[name].to_s
  raise NotTried, "no #{name.downcase} here" if command.empty?

  system(command, err: File::NULL) or raise "#{name} failed"
end

def restart
  act('RESTART')
end
