/* hiredis' synchronous calls. A check is a function that returns NULL, or what is wrong. */
#include <hiredis/hiredis.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define KEYS 60
static redisContext *redis;
static char wrong[400];

static redisContext *connection(void) {
    struct timeval limit = {15, 0};
    redisContext *made = redisConnectWithTimeout(getenv("PROXY_HOST"), atoi(getenv("PROXY_PORT")), limit);
    if (made == NULL || made->err) {
        fprintf(stderr, "cannot connect: %s\n", made ? made->errstr : "no memory");
        exit(1);
    }
    redisSetTimeout(made, limit);
    return made;
}

/* A reply as text: array elements in brackets, nil as (nil), errors with a minus. */
static void append(char *out, size_t size, const redisReply *reply) {
    size_t used = strlen(out);
    if (reply == NULL) {
        snprintf(out + used, size - used, "(none)");
    } else if (reply->type == REDIS_REPLY_INTEGER) {
        snprintf(out + used, size - used, "%lld", reply->integer);
    } else if (reply->type == REDIS_REPLY_NIL) {
        snprintf(out + used, size - used, "(nil)");
    } else if (reply->type == REDIS_REPLY_ARRAY) {
        snprintf(out + used, size - used, "[");
        for (size_t i = 0; i < reply->elements; i++) {
            if (i) strncat(out, " ", size - strlen(out) - 1);
            append(out, size, reply->element[i]);
        }
        strncat(out, "]", size - strlen(out) - 1);
    } else {
        snprintf(out + used, size - used, "%s%s", reply->type == REDIS_REPLY_ERROR ? "-" : "", reply->str);
    }
}

static const char *compare(redisReply *reply, const char *wanted) {
    static char got[4096];
    got[0] = 0;
    append(got, sizeof got, reply);
    if (reply) freeReplyObject(reply);
    if (strcmp(got, wanted) == 0) return NULL;
    snprintf(wrong, sizeof wrong, "got %.180s, not %.180s", got, wanted);
    return wrong;
}

/* The command's reply must read as `wanted`. */
static const char *want(redisContext *on, const char *wanted, const char *format, ...) {
    va_list words;
    va_start(words, format);
    redisReply *reply = redisvCommand(on, format, words);
    va_end(words);
    if (reply == NULL) {
        snprintf(wrong, sizeof wrong, "%.60s: %.200s", format, on->errstr);
        return wrong;
    }
    return compare(reply, wanted);
}
#define WANT(...) do { const char *bad = want(__VA_ARGS__); if (bad) return bad; } while (0)
#define TEXT(name, ...) char name[200]; snprintf(name, sizeof name, __VA_ARGS__)

static const char *strings(void) {
    for (int n = 0; n < KEYS; n++) {
        TEXT(value, "v%d", n);
        WANT(redis, "OK", "SET s:%d %s", n, value);
        WANT(redis, value, "GET s:%d", n);
    }
    WANT(redis, "[v1 v2 (nil)]", "MGET s:1 s:2 nosuch");
    WANT(redis, "OK", "SET %b %b", "\0\r\n", (size_t)3, "a\0b", (size_t)3);
    redisReply *reply = redisCommand(redis, "GET %b", "\0\r\n", (size_t)3);
    if (reply->len != 3 || memcmp(reply->str, "a\0b", 3)) return "not the binary value";
    freeReplyObject(reply);
    WANT(redis, "(nil)", "SET s:1 x NX");
    WANT(redis, "2", "DEL s:1 s:2");
    return NULL;
}

static const char *hashes(void) {
    for (int n = 0; n < KEYS; n++) {
        TEXT(value, "[a %d b x]", n);
        WANT(redis, "2", "HSET h:%d a %d b x", n, n);
        WANT(redis, value, "HGETALL h:%d", n);
    }
    WANT(redis, "7", "HINCRBY h:5 a 2");
    return NULL;
}

static const char *pipelines(void) {
    for (int n = 0; n < 1000; n++) {
        redisAppendCommand(redis, "SET p:%d %d", n, n);
        redisAppendCommand(redis, "GET p:%d", n);
    }
    for (int n = 0; n < 2000; n++) {
        void *reply = NULL;
        TEXT(value, "%d", n / 2);
        if (redisGetReply(redis, &reply) != REDIS_OK) return redis->errstr;
        const char *bad = compare(reply, n % 2 ? value : "OK");
        if (bad) return bad;
    }
    return NULL;
}

static const char *transactions(void) {
    for (int n = 0; n < KEYS; n++) {
        TEXT(value, "[OK %d]", n + 1);
        WANT(redis, "OK", "MULTI");
        WANT(redis, "QUEUED", "SET tx:%d %d", n, n);
        WANT(redis, "QUEUED", "INCR tx:%d", n);
        WANT(redis, value, "EXEC");
    }
    return NULL;
}

static const char *add(redisContext *on, const char *key) {
    for (;;) {
        WANT(on, "OK", "WATCH %s", key);
        redisReply *reply = redisCommand(on, "GET %s", key);
        int value = reply->str ? atoi(reply->str) + 1 : 1;
        freeReplyObject(reply);
        WANT(on, "OK", "MULTI");
        WANT(on, "QUEUED", "SET %s %d", key, value);
        reply = redisCommand(on, "EXEC");
        int done = reply->type == REDIS_REPLY_ARRAY;
        freeReplyObject(reply);
        if (done) return NULL;
    }
}

static const char *watches(void) {
    const char *keys[] = {"w:1", "w:2", "w:3"};
    pid_t child = fork();
    redisContext *own = child ? redis : connection();
    for (int n = 0; n < 90; n++) {
        const char *bad = add(own, keys[n % 3]);
        if (bad && !child) _exit(1);
        if (bad) return bad;
    }
    if (!child) _exit(0);
    waitpid(child, NULL, 0);
    WANT(redis, "[60 60 60]", "MGET w:1 w:2 w:3");
    return NULL;
}

static const char *scripts(void) {
    redisReply *reply = redisCommand(redis, "SCRIPT LOAD %s", "return redis.call('incrby', KEYS[1], ARGV[1] * 2)");
    if (reply->type != REDIS_REPLY_STRING) return "no SHA";
    for (int n = 0; n < KEYS; n++) {
        TEXT(value, "%d", 2 * n);
        WANT(redis, value, "EVALSHA %s 1 l:%d %d", reply->str, n, n);
    }
    freeReplyObject(reply);
    return NULL;
}

/* Sends a command from a process of its own, a little later. */
static pid_t later(const char *command) {
    pid_t child = fork();
    if (child) return child;
    usleep(100000);
    freeReplyObject(redisCommand(connection(), command));
    _exit(0);
}

static const char *pops(void) {
    for (int n = 0; n < 3; n++) {
        TEXT(push, "RPUSH b:%d item%d", n, n);
        TEXT(value, "[b:%d item%d]", n, n);
        pid_t child = later(push);
        WANT(redis, value, "BLPOP b:%d 10", n);
        waitpid(child, NULL, 0);
    }
    WANT(redis, "(nil)", "BRPOP b:none 0.1");
    pid_t child = later("RPUSH {b}1 x");
    WANT(redis, "x", "BLMOVE {b}1 {b}2 LEFT RIGHT 5");
    waitpid(child, NULL, 0);
    return NULL;
}

static const char *streams(void) {
    for (int n = 0; n < 9; n++) {
        TEXT(value, "[[x:%d [[1-1 [a %d]]]]]", n, n);
        WANT(redis, "OK", "XGROUP CREATE x:%d g 0 MKSTREAM", n);
        WANT(redis, "1-1", "XADD x:%d 1-1 a %d", n, n);
        WANT(redis, value, "XREADGROUP GROUP g c STREAMS x:%d >", n);
        WANT(redis, "1", "XACK x:%d g 1-1", n);
    }
    return NULL;
}

static const char *blocking_streams(void) {
    WANT(redis, "OK", "XGROUP CREATE xb g $ MKSTREAM");
    pid_t child = later("XADD xb 1-1 a b");
    WANT(redis, "[[xb [[1-1 [a b]]]]]", "XREADGROUP GROUP g c BLOCK 10000 STREAMS xb >");
    waitpid(child, NULL, 0);
    return NULL;
}

static const char *next(redisContext *on, const char *wanted) {
    void *reply = NULL;
    if (redisGetReply(on, &reply) != REDIS_OK) return on->errstr;
    return compare(reply, wanted);
}
#define NEXT(...) do { const char *bad = next(__VA_ARGS__); if (bad) return bad; } while (0)

static const char *pubsub(void) {
    redisContext *sub = connection();
    WANT(sub, "[subscribe ch:1 1]", "SUBSCRIBE ch:1");
    WANT(sub, "[psubscribe pat:* 2]", "PSUBSCRIBE pat:*");
    /* Their replies count the receivers at one node of a cluster. */
    freeReplyObject(redisCommand(redis, "PUBLISH ch:1 hello"));
    freeReplyObject(redisCommand(redis, "PUBLISH pat:x there"));
    NEXT(sub, "[message ch:1 hello]");
    NEXT(sub, "[pmessage pat:* pat:x there]");
    WANT(sub, "[pong ]", "PING");
    WANT(sub, "[unsubscribe ch:1 1]", "UNSUBSCRIBE");
    WANT(sub, "[punsubscribe pat:* 0]", "PUNSUBSCRIBE");
    WANT(sub, "OK", "SET after 1");
    redisFree(sub);
    return NULL;
}

static const char *scan(void) {
    static char seen[500];
    for (int n = 0; n < 500; n++) WANT(redis, "OK", "SET scan:%d %d", n, n);
    char cursor[32] = "0";
    do {
        redisReply *reply = redisCommand(redis, "SCAN %s MATCH scan:* COUNT 50", cursor);
        if (reply == NULL || reply->type != REDIS_REPLY_ARRAY) return "no page";
        snprintf(cursor, sizeof cursor, "%s", reply->element[0]->str);
        for (size_t i = 0; i < reply->element[1]->elements; i++) seen[atoi(reply->element[1]->element[i]->str + 5)] = 1;
        freeReplyObject(reply);
    } while (strcmp(cursor, "0"));
    return memchr(seen, 0, sizeof seen) ? "a key is missing" : NULL;
}

static const char *restarts(void) {
    if (system(getenv("RESTART")) != 0) return "no restart";
    redisReply *reply = redisCommand(redis, "PING");
    if (reply != NULL) return "the lost connection was not told";
    if (redisReconnect(redis) != REDIS_OK) return redis->errstr;
    for (int n = 0; n < KEYS; n++) WANT(redis, "OK", "SET r:%d %d", n, n);
    WANT(redis, "[1 59]", "MGET r:1 r:59");
    return NULL;
}

static void check(const char *name, const char *(*body)(void)) {
    if (redis->err) redisReconnect(redis);
    const char *bad = body();
    printf("{\"check\": \"%s\", \"ok\": %s, \"detail\": \"", name, bad ? "false" : "true");
    for (const char *c = bad ? bad : ""; *c; c++) putchar(*c == '"' || *c == '\\' || *c < ' ' ? '\'' : *c);
    puts("\"}");
    fflush(stdout);
}

int main(void) {
    signal(SIGPIPE, SIG_IGN);
    printf("{\"client\": \"hiredis\", \"version\": \"%d.%d.%d\"}\n", HIREDIS_MAJOR, HIREDIS_MINOR, HIREDIS_PATCH);
    fflush(stdout);
    redis = connection();
    check("strings", strings);
    check("hashes", hashes);
    check("pipelines", pipelines);
    check("MULTI", transactions);
    check("WATCH loops", watches);
    check("Lua by EVALSHA", scripts);
    check("blocking pops", pops);
    check("streams with consumer groups", streams);
    check("streams that block", blocking_streams);
    check("pub/sub", pubsub);
    check("SCAN iterators", scan);
    if (getenv("RESTART") && *getenv("RESTART"))
        check("reconnect after a restart", restarts);
    else
        puts("{\"check\": \"reconnect after a restart\", \"ok\": null, \"detail\": \"no restart here\"}");
    return 0;
}
