package Checks;
# For programs in Perl: report(name, version), then check('strings', sub { ... }); each prints its line of JSON.
# A check that dies, or takes longer than its limit, is a failed one, and the program goes on.
use strict;
use warnings;
use Exporter 'import';
use JSON::PP;
use POSIX ();
our @EXPORT = qw(report check equal beside restart not_tried $HOST $PORT);
our $HOST = $ENV{PROXY_HOST};
our $PORT = $ENV{PROXY_PORT};
my $json = JSON::PP->new->canonical->allow_nonref;
$| = 1;

sub say_it { print $json->encode({@_}), "\n" }

sub report { my ($client, $version) = @_; say_it(client => $client, version => "$version") }

sub not_tried { die { not_tried => shift } }

sub check {
    my ($name, $body, $limit_s) = @_;
    my $done = eval {
        local $SIG{ALRM} = sub { die "not in time\n" };
        alarm($limit_s || 30);
        $body->();
        alarm 0;
        1;
    };
    my $error = $@;
    alarm 0;
    if ($done) { say_it(check => $name, ok => JSON::PP::true) }
    elsif (ref $error eq 'HASH') { say_it(check => $name, ok => undef, detail => $error->{not_tried}) }
    else { say_it(check => $name, ok => JSON::PP::false, detail => "$error") }
}

# Values of any depth, compared as their JSON with every scalar as text.
sub text { my $v = shift; ref $v eq 'ARRAY' ? [map { text($_) } @$v] : ref $v eq 'HASH' ? {map { $_ => text($v->{$_}) } keys %$v} : defined $v ? "$v" : undef }

sub equal {
    my ($got, $wanted) = map { $json->encode(text($_)) } @_;
    my (undef, undef, $line) = caller;
    die "got $got, not $wanted (main.pl:$line)" if $got ne $wanted;
}

# Runs a body in a process of its own, which has to make connections of its own; gives its process id.
sub beside {
    my $body = shift;
    my $pid = fork;
    return $pid if $pid;
    select undef, undef, undef, 0.1;
    eval { $body->() };
    kill KILL => $$;    # without the parent's destructors
}

sub restart {
    my $command = $ENV{RESTART} or not_tried('no restart here');
    system("$command 2>/dev/null") == 0 or die 'RESTART failed';
}
1;
