/* The clients' side of `bench/hub`: reads many open WebSocket connections with epoll and counts what arrives.
 *
 * The connections are inherited as file descriptors, already upgraded and subscribed. Standard input: a line of
 * `descriptors path stride n fd fd …`, then `b` begins a measurement and `e` ends it with a report on standard output:
 *     closed CPU_US WALL_US CONNECTIONS LATENCIES
 *     messages payload_bytes frames        one line for each connection
 *     microseconds                         one line for each sampled message
 * A message bears the instant of its publication as '@' and 16 digits, microseconds of the wall clock, and no other '@'.
 * Each stride-th connection is sampled. Compressed frames of those are appended to `path`, as
 * connection (u32), arrival (u64), length (u32) and the payload, for the caller to inflate.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

struct conn {
    int fd, sampled, header_have, digits, deflated, control;
    unsigned char header[10];
    uint64_t left, messages, bytes, frames, stamp;
    unsigned char *kept;
    size_t kept_have, kept_room;
};

static struct conn *conns;
static int count, closed;
static int32_t *latencies;
static size_t latency_count, latency_room;
static int measuring;
static FILE *raw;

static uint64_t micros(clockid_t clock) {
    struct timespec t;
    clock_gettime(clock, &t);
    return (uint64_t)t.tv_sec * 1000000 + t.tv_nsec / 1000;
}

static uint64_t cpu(void) {
    struct rusage r;
    getrusage(RUSAGE_SELF, &r);
    return (uint64_t)(r.ru_utime.tv_sec + r.ru_stime.tv_sec) * 1000000 + r.ru_utime.tv_usec + r.ru_stime.tv_usec;
}

static void latency(int64_t value) {
    if (!measuring) return;
    if (latency_count == latency_room)
        latencies = realloc(latencies, (latency_room = latency_room ? latency_room * 2 : 65536) * sizeof *latencies);
    latencies[latency_count++] = (int32_t)value;
}

/* Counts the stamps of a piece of text; one that is cut in two by the end of a read is put together. */
static void text(struct conn *c, const unsigned char *p, size_t n, uint64_t now) {
    const unsigned char *end = p + n;
    while (p < end) {
        if (c->digits) {
            while (p < end && c->digits <= 16) {
                c->stamp = c->stamp * 10 + (*p++ - '0');
                if (++c->digits == 17) {
                    latency((int64_t)(now - c->stamp));
                    c->digits = 0;
                    break;
                }
            }
            continue;
        }
        p = memchr(p, '@', end - p);
        if (!p) return;
        p++;
        c->messages++;
        if (c->sampled) c->digits = 1, c->stamp = 0;
    }
}

static void keep(struct conn *c, const unsigned char *p, size_t n) {
    if (c->kept_have + n > c->kept_room) c->kept = realloc(c->kept, c->kept_room = (c->kept_have + n) * 2);
    memcpy(c->kept + c->kept_have, p, n);
    c->kept_have += n;
}

static void whole(struct conn *c, uint64_t now) {
    if (c->control) return;
    c->frames++;
    if (c->deflated && c->sampled && measuring) {
        uint32_t index = (uint32_t)(c - conns), length = (uint32_t)c->kept_have;
        fwrite(&index, 4, 1, raw);
        fwrite(&now, 8, 1, raw);
        fwrite(&length, 4, 1, raw);
        fwrite(c->kept, 1, c->kept_have, raw);
    }
    c->kept_have = 0;
}

static void feed(struct conn *c, const unsigned char *p, size_t n, uint64_t now) {
    while (n) {
        if (!c->left) {
            c->header[c->header_have++] = *p++, n--;
            int small = c->header_have > 1 ? c->header[1] & 127 : 0;
            int need = c->header_have < 2 ? 2 : small == 126 ? 4 : small == 127 ? 10 : 2;
            if (c->header_have < need) continue;
            uint64_t length = small;
            if (need > 2) {
                length = 0;
                for (int i = 2; i < need; i++) length = length << 8 | c->header[i];
            }
            c->header_have = 0;
            c->control = c->header[0] & 8;
            c->deflated = c->header[0] & 64;
            c->left = length;
            if (!length) whole(c, now);
            continue;
        }
        size_t take = n < c->left ? n : c->left;
        if (!c->control) {
            c->bytes += take;
            if (!c->deflated) text(c, p, take, now);
            else if (c->sampled) keep(c, p, take);
        }
        p += take, n -= take;
        if (!(c->left -= take)) whole(c, now);
    }
}

int main(void) {
    static unsigned char buffer[1 << 18];
    char path[512];
    int stride, poll = epoll_create1(0);
    if (scanf("%511s %d %d", path, &stride, &count) != 3) return 2;
    raw = fopen(path, "wb");
    conns = calloc(count, sizeof *conns);
    if (!raw || !conns) return 2;
    for (int i = 0; i < count; i++) {
        if (scanf("%d", &conns[i].fd) != 1) return 2;
        conns[i].sampled = i % stride == 0;
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = &conns[i]};
        epoll_ctl(poll, EPOLL_CTL_ADD, conns[i].fd, &event);
    }
    struct epoll_event commands = {.events = EPOLLIN, .data.ptr = NULL};
    epoll_ctl(poll, EPOLL_CTL_ADD, 0, &commands);
    uint64_t begun_cpu = 0, begun = 0;
    puts("ready");
    fflush(stdout);
    for (;;) {
        struct epoll_event events[1024];
        int ready = epoll_wait(poll, events, 1024, -1);
        for (int i = 0; i < ready; i++) {
            struct conn *c = events[i].data.ptr;
            if (!c) {
                char command;
                if (read(0, &command, 1) != 1) return 0;
                if (command == 'b') {
                    for (int k = 0; k < count; k++) conns[k].messages = conns[k].bytes = conns[k].frames = 0;
                    latency_count = 0, measuring = 1, closed = 0;
                    begun_cpu = cpu(), begun = micros(CLOCK_MONOTONIC);
                } else if (command == 'e') {
                    measuring = 0;
                    fflush(raw);
                    printf("%d %llu %llu %d %zu\n", closed, (unsigned long long)(cpu() - begun_cpu),
                           (unsigned long long)(micros(CLOCK_MONOTONIC) - begun), count, latency_count);
                    for (int k = 0; k < count; k++)
                        printf("%llu %llu %llu\n", (unsigned long long)conns[k].messages,
                               (unsigned long long)conns[k].bytes, (unsigned long long)conns[k].frames);
                    for (size_t k = 0; k < latency_count; k++) printf("%d\n", latencies[k]);
                    fflush(stdout);
                }
                continue;
            }
            ssize_t got = recv(c->fd, buffer, sizeof buffer, MSG_DONTWAIT);
            if (got > 0) feed(c, buffer, got, micros(CLOCK_REALTIME));
            else if (got == 0 || (errno != EAGAIN && errno != EINTR)) {
                epoll_ctl(poll, EPOLL_CTL_DEL, c->fd, NULL);
                closed++;
            }
        }
    }
}
