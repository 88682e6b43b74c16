// Command bench is a server on centrifuge, the engine of Centrifugo, that the bench of the hub runs beside ours:
// `bench PORT RATE each|joined plain|deflate`. A line on standard input starts the publisher: the messages that are
// due, every 16 ms. Its own batching is on: a write waits up to 16 ms for more.
package main

import (
	"bufio"
	"context"
	"fmt"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/centrifugal/centrifuge"
)

const interval = 16 * time.Millisecond

func message(number int, stamp int64) string {
	return fmt.Sprintf(`{"type":"routing-decision","channel":"desk-%d","offset":%d,"epoch":"k3j9x2",`+
		`"timestamp":"2026-11-20T09:00:00.000Z","data":{"symbol":"SYM%d","side":"BUY","volume":1.5,`+
		`"routingDecision":"ABOOK","lpSelected":"LP-ALPHA","at":"@%d"}}`,
		number%4, number, number%50, stamp)
}

func main() {
	rate, _ := strconv.ParseFloat(os.Args[2], 64)
	joined, deflate := os.Args[3] == "joined", os.Args[4] == "deflate"
	node, err := centrifuge.New(centrifuge.Config{})
	if err != nil {
		panic(err)
	}
	node.OnConnecting(func(context.Context, centrifuge.ConnectEvent) (centrifuge.ConnectReply, error) {
		return centrifuge.ConnectReply{
			Credentials:        &centrifuge.Credentials{UserID: "bench"},
			WriteDelay:         interval,
			MaxMessagesInFrame: -1,
		}, nil
	})
	node.OnConnect(func(client *centrifuge.Client) {
		client.OnSubscribe(func(_ centrifuge.SubscribeEvent, reply centrifuge.SubscribeCallback) {
			reply(centrifuge.SubscribeReply{}, nil)
		})
	})
	if err := node.Run(); err != nil {
		panic(err)
	}
	go publish(node, rate, joined)
	http.Handle("/", centrifuge.NewWebsocketHandler(node, centrifuge.WebsocketConfig{
		CheckOrigin:      func(*http.Request) bool { return true },
		Compression:      deflate,
		CompressionLevel: 1,
	}))
	panic(http.ListenAndServe("127.0.0.1:"+os.Args[1], nil))
}

func publish(node *centrifuge.Node, rate float64, joined bool) {
	bufio.NewReader(os.Stdin).ReadString('\n')
	quiet := rate < 60
	began := time.Now()
	for done, ticks := 0, 0; ; ticks++ {
		due := int(time.Since(began).Seconds() * rate)
		var texts []string
		for ; done < due; done++ {
			stamp := began.UnixMicro() + int64(float64(done)*1e6/rate)
			if quiet {
				stamp = time.Now().UnixMicro()
			}
			texts = append(texts, message(done, stamp))
		}
		if joined && len(texts) > 0 {
			texts = []string{"[" + strings.Join(texts, ",") + "]"}
		}
		for _, text := range texts {
			node.Publish("all", []byte(text))
		}
		next := began.Add(time.Duration(ticks+1) * interval)
		if quiet {
			next = began.Add(time.Duration(float64(done+1) / rate * float64(time.Second)))
		}
		time.Sleep(time.Until(next))
	}
}
