<?php
// For programs in PHP: report(name, version), then check("strings", function () {...}); each prints its line of JSON.
// A check that throws is a failed one, and the program goes on.
declare(strict_types=1);

define('HOST', getenv('PROXY_HOST'));
define('PORT', (int) getenv('PROXY_PORT'));

class NotTried extends Exception {}

function say(array $report): void
{
    // Not echo: a session cannot be started after output.
    fwrite(STDOUT, json_encode($report, JSON_INVALID_UTF8_SUBSTITUTE) . "\n");
}

function report(string $client, string $version): void
{
    say(['client' => $client, 'version' => $version]);
}

function check(string $name, callable $body): void
{
    try {
        $body();
        say(['check' => $name, 'ok' => true]);
    } catch (NotTried $why) {
        say(['check' => $name, 'ok' => null, 'detail' => $why->getMessage()]);
    } catch (Throwable $error) {
        $line = $error->getLine();
        foreach ($error->getTrace() as $frame) {
            if (basename($frame['file'] ?? '') === 'main.php') {
                $line = $frame['line'];
                break;
            }
        }
        say(['check' => $name, 'ok' => false, 'detail' => get_class($error) . ": {$error->getMessage()} (main.php:$line)"]);
    }
}

function equal($got, $wanted): void
{
    if ($got !== $wanted) {
        throw new Exception('got ' . json_encode($got) . ', not ' . json_encode($wanted));
    }
}

// Runs a body in a process of its own, which has to make connections of its own; gives its process id.
function beside(callable $body): int
{
    $pid = pcntl_fork();
    if ($pid === 0) {
        try {
            usleep(100000);
            $body();
        } finally {
            posix_kill(getmypid(), SIGKILL); // without the parent's destructors
        }
    }
    return $pid;
}

function restart(): void
{
    $command = getenv('RESTART');
    if (!$command) {
        throw new NotTried('no restart here');
    }
    exec($command . ' 2>/dev/null', $output, $code);
    equal($code, 0);
}
