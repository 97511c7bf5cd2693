// redigo by its pool, as applications use it. A check is a function that returns an error.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"reflect"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/gomodule/redigo/redis"
)

const keys = 60

var errNotTried = errors.New("no restart here")

var pool = &redis.Pool{
	MaxIdle:     5,
	IdleTimeout: time.Minute,
	Dial: func() (redis.Conn, error) {
		address := os.Getenv("PROXY_HOST") + ":" + os.Getenv("PROXY_PORT")
		return redis.Dial("tcp", address, redis.DialReadTimeout(15*time.Second), redis.DialClientName("redigo"))
	},
	TestOnBorrow: func(c redis.Conn, t time.Time) error {
		_, err := c.Do("PING")
		return err
	},
}

func say(report map[string]interface{}) {
	line, _ := json.Marshal(report)
	fmt.Println(string(line))
}

func check(name string, body func(c redis.Conn) error) {
	c := pool.Get()
	defer c.Close()
	done := make(chan error, 1)
	go func() { done <- body(c) }()
	var err error
	select {
	case err = <-done:
	case <-time.After(45 * time.Second):
		err = errors.New("not in time")
	}
	switch {
	case err == errNotTried:
		say(map[string]interface{}{"check": name, "ok": nil, "detail": err.Error()})
	case err != nil:
		say(map[string]interface{}{"check": name, "ok": false, "detail": err.Error()})
	default:
		say(map[string]interface{}{"check": name, "ok": true})
	}
}

// A reply with bulk strings as text.
func plain(reply interface{}) interface{} {
	switch value := reply.(type) {
	case []byte:
		return string(value)
	case []interface{}:
		list := make([]interface{}, len(value))
		for i := range value {
			list[i] = plain(value[i])
		}
		return list
	}
	return reply
}

type list = []interface{}

func want(c redis.Conn, wanted interface{}, command string, args ...interface{}) error {
	reply, err := c.Do(command, args...)
	if err != nil {
		return fmt.Errorf("%s: %w", command, err)
	}
	return equal(plain(reply), wanted)
}

func equal(got, wanted interface{}) error {
	if !reflect.DeepEqual(got, wanted) {
		return fmt.Errorf("got %#v, not %#v", got, wanted)
	}
	return nil
}

// The first error there is.
func first(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

func each(count int, body func(n int) error) error {
	for n := 0; n < count; n++ {
		if err := body(n); err != nil {
			return err
		}
	}
	return nil
}

func key(prefix string, n int) string { return prefix + ":" + strconv.Itoa(n) }

func later(command string, args ...interface{}) {
	go func() {
		time.Sleep(50 * time.Millisecond)
		c := pool.Get()
		defer c.Close()
		c.Do(command, args...)
	}()
}

func main() {
	version, _ := exec.Command("dpkg-query", "-W", "-f=${Version}", "golang-github-gomodule-redigo-dev").Output()
	say(map[string]interface{}{"client": "redigo", "version": strings.TrimPrefix(strings.Split(string(version), "-")[0], "1:")})

	check("strings", func(c redis.Conn) error {
		err := each(keys, func(n int) error {
			return first(want(c, "OK", "SET", key("s", n), n), want(c, strconv.Itoa(n), "GET", key("s", n)))
		})
		return first(err,
			want(c, list{"1", "2", nil}, "MGET", "s:1", "s:2", "nosuch"),
			want(c, "OK", "MSET", "m:1", "a", "m:2", "b", "m:3", "c"),
			want(c, nil, "SET", "s:1", "x", "NX"),
			want(c, int64(3), "DEL", "m:1", "m:2", "m:3"),
			want(c, "redigo", "CLIENT", "GETNAME"))
	})

	check("hashes", func(c redis.Conn) error {
		return each(keys, func(n int) error {
			if err := want(c, int64(2), "HSET", redis.Args{}.Add(key("h", n)).AddFlat(map[string]int{"a": n, "b": 7})...); err != nil {
				return err
			}
			got, err := redis.IntMap(c.Do("HGETALL", key("h", n)))
			return first(err, equal(got, map[string]int{"a": n, "b": 7}))
		})
	})

	check("pipelines", func(c redis.Conn) error {
		for n := 0; n < 1000; n++ {
			c.Send("SET", key("p", n), n)
			c.Send("GET", key("p", n))
		}
		c.Flush()
		return each(1000, func(n int) error {
			if _, err := c.Receive(); err != nil {
				return err
			}
			got, err := redis.Int(c.Receive())
			return first(err, equal(got, n))
		})
	})

	check("MULTI", func(c redis.Conn) error {
		return each(keys, func(n int) error {
			c.Send("MULTI")
			c.Send("SET", key("tx", n), n)
			c.Send("INCR", key("tx", n))
			return want(c, list{"OK", int64(n + 1)}, "EXEC")
		})
	})

	check("WATCH loops", func(c redis.Conn) error {
		var group sync.WaitGroup
		failed := make(chan error, 3)
		for i := 0; i < 3; i++ {
			group.Add(1)
			go func() {
				defer group.Done()
				own := pool.Get()
				defer own.Close()
				failed <- each(60, func(n int) error {
					for {
						if err := want(own, "OK", "WATCH", key("w", n%3)); err != nil {
							return err
						}
						value, err := redis.Int(own.Do("GET", key("w", n%3)))
						if err != nil && err != redis.ErrNil {
							return err
						}
						own.Send("MULTI")
						own.Send("SET", key("w", n%3), value+1)
						if reply, err := own.Do("EXEC"); err != nil || reply != nil {
							return err
						}
					}
				})
			}()
		}
		group.Wait()
		return first(<-failed, <-failed, <-failed, want(c, list{"60", "60", "60"}, "MGET", "w:0", "w:1", "w:2"))
	})

	check("Lua by EVALSHA", func(c redis.Conn) error {
		script := redis.NewScript(1, "return redis.call('incrby', KEYS[1], ARGV[1] * 2)")
		double := func(factor int) error {
			return each(keys, func(n int) error {
				got, err := redis.Int(script.Do(c, key("l", n), n))
				return first(err, equal(got, factor*n))
			})
		}
		return first(double(2), want(c, "OK", "SCRIPT", "FLUSH"), double(4))
	})

	check("blocking pops", func(c redis.Conn) error {
		err := each(9, func(n int) error {
			later("RPUSH", key("b", n), n)
			return want(c, list{key("b", n), strconv.Itoa(n)}, "BLPOP", key("b", n), 10)
		})
		later("RPUSH", "{b}1", "x")
		return first(err, want(c, "x", "BLMOVE", "{b}1", "{b}2", "LEFT", "RIGHT", 5), want(c, nil, "BRPOP", "b:none", 0.1))
	})

	check("streams with consumer groups", func(c redis.Conn) error {
		return each(9, func(n int) error {
			return first(
				want(c, "OK", "XGROUP", "CREATE", key("x", n), "g", "0", "MKSTREAM"),
				want(c, "1-1", "XADD", key("x", n), "1-1", "a", n),
				want(c, list{list{key("x", n), list{list{"1-1", list{"a", strconv.Itoa(n)}}}}}, "XREADGROUP", "GROUP", "g", "c", "STREAMS", key("x", n), ">"),
				want(c, int64(1), "XACK", key("x", n), "g", "1-1"))
		})
	})

	check("streams that block", func(c redis.Conn) error {
		err := want(c, "OK", "XGROUP", "CREATE", "xb", "g", "$", "MKSTREAM")
		later("XADD", "xb", "1-1", "a", "b")
		return first(err, want(c, list{list{"xb", list{list{"1-1", list{"a", "b"}}}}}, "XREADGROUP", "GROUP", "g", "c", "BLOCK", 10000, "STREAMS", "xb", ">"))
	})

	check("pub/sub", func(c redis.Conn) error {
		sub := redis.PubSubConn{Conn: pool.Get()}
		defer sub.Close()
		if err := first(sub.Subscribe("ch:1"), sub.PSubscribe("pat:*")); err != nil {
			return err
		}
		got := []string{}
		for {
			switch message := sub.Receive().(type) {
			case error:
				return message
			case redis.Subscription:
				got = append(got, message.Kind+" "+message.Channel+" "+strconv.Itoa(message.Count))
				if message.Kind == "psubscribe" {
					// Its replies count the receivers at one node of a cluster.
					_, one := c.Do("PUBLISH", "ch:1", "hello")
					_, two := c.Do("PUBLISH", "pat:x", "there")
					if err := first(one, two, sub.Ping("p")); err != nil {
						return err
					}
				}
				if message.Count == 0 {
					return equal(strings.Join(got, ", "), "subscribe ch:1 1, psubscribe pat:* 2, ch:1 hello, pat:x there, pong p, unsubscribe ch:1 1, punsubscribe pat:* 0")
				}
			case redis.Message:
				got = append(got, message.Channel+" "+string(message.Data))
			case redis.Pong:
				got = append(got, "pong "+message.Data)
				if err := first(sub.Unsubscribe(), sub.PUnsubscribe()); err != nil {
					return err
				}
			}
		}
	})

	check("SCAN iterators", func(c redis.Conn) error {
		if err := each(500, func(n int) error { return want(c, "OK", "SET", key("scan", n), n) }); err != nil {
			return err
		}
		found := map[string]bool{}
		cursor := "0"
		for {
			page, err := redis.Values(c.Do("SCAN", cursor, "MATCH", "scan:*", "COUNT", 50))
			if err != nil {
				return err
			}
			names, _ := redis.Strings(page[1], nil)
			for _, name := range names {
				found[name] = true
			}
			if cursor, _ = redis.String(page[0], nil); cursor == "0" {
				return equal(len(found), 500)
			}
		}
	})

	check("reconnect after a restart", func(redis.Conn) error {
		command := os.Getenv("RESTART")
		if command == "" {
			return errNotTried
		}
		if err := exec.Command("sh", "-c", command).Run(); err != nil {
			return err
		}
		c := pool.Get() // TestOnBorrow drops those that were lost
		defer c.Close()
		return each(keys, func(n int) error {
			return first(want(c, "OK", "SET", key("r", n), n), want(c, strconv.Itoa(n), "GET", key("r", n)))
		})
	})
}
