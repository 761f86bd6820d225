/* The load generator of the benchmarks: one thread, one epoll, prints one JSON object.
 *
 *   load closed  PORT REQUEST_FILE CONNECTIONS SECONDS        each connection asks again as soon as it is answered
 *   load open    PORT REQUEST_FILE RATE SECONDS               requests at fixed times; latency from the time they were due
 *   load streams PORT REQUEST_FILE STREAMS SECONDS RAMP       so many streams at once; a stream that ends is opened again
 *
 * REQUEST_FILE holds a whole HTTP request. The ten zeros of "session-0000000000" in it, if it has them, count the requests
 * from the clock's microseconds on, so that no two are the same in whatever run. An answer counts as good with status 200 and, for
 * `closed` and `open`, the text
 * "answer-of-the-mock" in it. Streams hold @@ and 19 digits per chunk: the CLOCK_MONOTONIC nanoseconds at which the mock
 * wrote it. Chunk delay = now - that. TTFT = request sent to first such chunk read.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#include <fcntl.h>

#define MAX_FD 65536
#define SAMPLES 4000000
#define HEAD_MAX 8192

enum { HEAD, LENGTH, CHUNK_SIZE, CHUNK_DATA, CHUNK_END, TRAILER };

typedef struct {
    int fd, busy, state, status, ok, match, digits, seen_chunk, fresh;
    size_t sent;          /* bytes of the request that are written */
    size_t left;          /* bytes of the body or chunk still to come */
    size_t head_len;
    int trailer;
    int64_t began, stamp;
    char head[HEAD_MAX];
} conn;

typedef struct { float *at; long n; } samples;

static conn *conns[MAX_FD];
static int ep, port, streams_mode;
static char *request, *counter;
static long asked;
static size_t request_len;
static samples latency, ttft, delay_all, delay_first, delay_second;
static long good, bad, refused, chunk_count, ended;
static long long bytes_read;
static int64_t started, half, stop_at;
static char why[160];

static int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void add(samples *s, double ms) {
    if (!s->at) s->at = malloc(SAMPLES * sizeof *s->at);
    if (s->n < SAMPLES) s->at[s->n++] = ms;
}

static int by_value(const void *a, const void *b) {
    float x = *(const float *)a, y = *(const float *)b;
    return x < y ? -1 : x > y;
}

static void report(const char *name, samples *s) {
    if (!s->n) { printf(",\"%s\":null", name); return; }
    qsort(s->at, s->n, sizeof *s->at, by_value);
    double sum = 0;
    for (long i = 0; i < s->n; i++) sum += s->at[i];
    printf(",\"%s\":{\"n\":%ld,\"mean\":%.4f,\"p50\":%.4f,\"p90\":%.4f,\"p99\":%.4f,\"max\":%.4f}", name, s->n, sum / s->n,
           s->at[s->n / 2], s->at[(long)(s->n * 0.90)], s->at[(long)(s->n * 0.99)], s->at[s->n - 1]);
}

static void watch(conn *c, int op, int writing) {
    struct epoll_event e = {.events = EPOLLIN | (writing ? EPOLLOUT : 0), .data.fd = c->fd};
    epoll_ctl(ep, op, c->fd, &e);
}

static conn *dial(void) {
    int fd = socket(AF_INET, SOCK_STREAM, 0), one = 1;
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    if (fd < 0 || connect(fd, (struct sockaddr *)&to, sizeof to)) { if (fd >= 0) close(fd); refused++; return NULL; }
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    fcntl(fd, F_SETFL, O_NONBLOCK);
    conn *c = calloc(1, sizeof *c);
    c->fd = fd;
    c->fresh = 1;
    conns[fd] = c;
    watch(c, EPOLL_CTL_ADD, 0);
    return c;
}

static void hang_up(conn *c) {
    conns[c->fd] = NULL;
    close(c->fd);
    free(c);
}

static int push(conn *c) {
    while (c->sent < request_len) {
        ssize_t n = send(c->fd, request + c->sent, request_len - c->sent, MSG_NOSIGNAL);
        if (n < 0 && errno == EAGAIN) { watch(c, EPOLL_CTL_MOD, 1); return 0; }
        if (n < 0) return -1;
        c->sent += n;
    }
    return 0;
}

static void ask(conn *c, int64_t began) {
    c->busy = 1; c->state = HEAD; c->status = 0; c->ok = streams_mode; c->match = c->digits = c->seen_chunk = 0;
    c->sent = c->left = c->head_len = 0;
    c->trailer = 0;
    c->began = began;
    if (counter) { char digits[12]; snprintf(digits, sizeof digits, "%010ld", (started / 1000 + ++asked) % 10000000000L); memcpy(counter, digits, 10); }
    push(c);
}

/* --- reading --- */

static void stamp_seen(conn *c) {
    int64_t now = now_ns();
    double ms = (now - c->stamp) / 1e6;
    chunk_count++;
    add(&delay_all, ms);
    add(now < half ? &delay_first : &delay_second, ms);
    if (!c->seen_chunk) { c->seen_chunk = 1; add(&ttft, (now - c->began) / 1e6); }
}

static void body(conn *c, const char *data, size_t len) {
    if (!streams_mode) {
        if (!c->ok && memmem(data, len, "answer-of-the-mock", 18)) c->ok = 1;
        return;
    }
    for (size_t i = 0; i < len; i++) {
        char ch = data[i];
        if (c->match < 2) { c->match = ch == '@' ? c->match + 1 : 0; c->digits = 0; c->stamp = 0; continue; }
        if (ch < '0' || ch > '9') { c->match = 0; continue; }
        c->stamp = c->stamp * 10 + (ch - '0');
        if (++c->digits == 19) { c->match = 0; stamp_seen(c); }
    }
}

static char *header(conn *c, const char *name) { return strcasestr(c->head, name); }

/* Takes what was read; 1 when the answer is complete, -1 when it makes no sense. */
static int take(conn *c, const char *p, size_t n) {
    const char *end = p + n;
    while (p < end) switch (c->state) {
        case HEAD:
            if (c->head_len >= HEAD_MAX - 1) return -1;
            c->head[c->head_len++] = *p++;
            if (c->head_len < 4 || memcmp(c->head + c->head_len - 4, "\r\n\r\n", 4)) break;
            c->head[c->head_len] = 0;
            c->status = atoi(c->head + 9);
            if (c->status == 100) { c->head_len = 0; break; }
            if (header(c, "transfer-encoding: chunked")) { c->state = CHUNK_SIZE; c->left = 0; break; }
            char *length = header(c, "content-length:");
            if (!length) return -1;
            c->left = strtoul(length + 15, NULL, 10);
            c->state = LENGTH;
            if (!c->left) return 1;
            break;
        case LENGTH: {
            size_t take = (size_t)(end - p) < c->left ? (size_t)(end - p) : c->left;
            body(c, p, take);
            p += take;
            if (!(c->left -= take)) return 1;
            break;
        }
        case CHUNK_SIZE: {
            char ch = *p++;
            if (ch == '\n') { c->state = c->left ? CHUNK_DATA : TRAILER; c->trailer = 0; break; }
            if (ch >= '0' && ch <= '9') c->left = c->left * 16 + (ch - '0');
            else if ((ch | 32) >= 'a' && (ch | 32) <= 'f') c->left = c->left * 16 + ((ch | 32) - 'a' + 10);
            break;
        }
        case CHUNK_DATA: {
            size_t take = (size_t)(end - p) < c->left ? (size_t)(end - p) : c->left;
            body(c, p, take);
            p += take;
            if (!(c->left -= take)) c->state = CHUNK_END;
            break;
        }
        case CHUNK_END:
            if (*p++ == '\n') { c->state = CHUNK_SIZE; c->left = 0; }
            break;
        case TRAILER:
            if (*p++ == '\n') return 1;
            break;
    }
    return 0;
}

static void finish(conn *c, int64_t now) {
    c->busy = 0;
    c->fresh = 0;
    ended++;
    if (c->status == 200 && c->ok) { good++; add(&latency, (now - c->began) / 1e6); }
    else {
        bad++;
        if (!why[0]) snprintf(why, sizeof why, "status %d", c->status);
    }
}

/* 1: answered, 0: more to come, -1: the connection is gone. */
static int readable(conn *c) {
    static char buffer[262144];
    for (;;) {
        ssize_t n = recv(c->fd, buffer, sizeof buffer, 0);
        if (n < 0 && errno == EAGAIN) return 0;
        if (n <= 0) {
            if (c->busy) { bad++; if (!why[0]) snprintf(why, sizeof why, "connection closed in state %d", c->state); }
            return -1;
        }
        bytes_read += n;
        if (!c->busy) continue;
        int done = take(c, buffer, n);
        if (done < 0) { bad++; return -1; }
        if (done) {
            int closing = header(c, "connection: close") != NULL;
            finish(c, now_ns());
            return closing ? -1 : 1;
        }
        if ((size_t)n < sizeof buffer) return 0;
    }
}

/* --- the three ways to ask --- */

static conn *idle[MAX_FD];
static int idle_count;
static int wanted;      /* closed, streams: connections that should be busy */

static int again(void) { return now_ns() < stop_at && bad < 20000 && refused < 2000; }

static void closed_step(conn *c, int result) {
    if (result == 0) return;
    if (result < 0) {
        hang_up(c);
        if (!again()) { wanted--; return; }
        if (!(c = dial())) { wanted--; return; }
    }
    if (again()) ask(c, now_ns());
    else { wanted--; }
}

static void open_step(conn *c, int result) {
    if (result < 0) {
        for (int i = 0; i < idle_count; i++) if (idle[i] == c) { idle[i] = idle[--idle_count]; break; }
        hang_up(c);
    } else if (result > 0) idle[idle_count++] = c;
}

static void poll_once(int64_t until, void (*step)(conn *, int)) {
    struct epoll_event seen[512];
    int64_t left = until - now_ns();
    if (left < 0) left = 0;
    struct timespec wait = {left / 1000000000LL, left % 1000000000LL};
    int n = epoll_pwait2(ep, seen, 512, &wait, NULL);
    for (int i = 0; i < n; i++) {
        conn *c = conns[seen[i].data.fd];
        if (!c) continue;
        if (seen[i].events & EPOLLOUT) {
            if (push(c) < 0) { if (c->busy) bad++; step(c, -1); continue; }
            if (c->sent == request_len) watch(c, EPOLL_CTL_MOD, 0);
        }
        if (seen[i].events & ~EPOLLOUT) step(c, readable(c));
    }
}

/* When connection i is opened. Not quite evenly: streams opened every 5 ms that write every 20 ms would write in four
 * bursts, and a contestant that opens them late would look better for spreading them. */
static int64_t opening(int i, int connections, double ramp) {
    double golden = i * 0.6180339887498949;
    return started + (int64_t)(ramp * 1e9 / connections * (i + golden - (int64_t)golden));
}

static void run_closed(int connections, double ramp) {
    int opened = 0;
    while (wanted > 0 || opened < connections) {
        int64_t now = now_ns();
        for (; opened < connections && now >= opening(opened, connections, ramp); opened++) {
            conn *c = dial();
            if (c) { wanted++; ask(c, now_ns()); }
        }
        if (now > stop_at + 5000000000LL || (!wanted && opened == connections)) break;
        if (!wanted && refused && opened) break;
        poll_once(opened < connections ? opening(opened, connections, ramp) : stop_at + 5000000000LL, closed_step);
        if (!again() && opened < connections) break;
        if (!again() && streams_mode) break; /* streams that are open at the end are cut: the time is up */
    }
}

static void run_open(double rate) {
    int64_t gap = (int64_t)(1e9 / rate), due = started;
    long sent = 0;
    while (due < stop_at && again()) {
        int64_t now = now_ns();
        if (now >= due) {
            conn *c = idle_count ? idle[--idle_count] : dial();
            if (c) { ask(c, due); sent++; }
            due += gap;
            continue;
        }
        poll_once(due, open_step);
    }
    while (good + bad < sent && now_ns() < stop_at + 5000000000LL) poll_once(stop_at + 5000000000LL, open_step);
    printf("\"asked\":%ld,\"unanswered\":%ld,", sent, sent - good - bad);
}

int main(int argc, char **argv) {
    if (argc < 6) { fprintf(stderr, "usage: load closed|open|streams PORT REQUEST_FILE N SECONDS [RAMP]\n"); return 2; }
    signal(SIGPIPE, SIG_IGN);
    prctl(PR_SET_TIMERSLACK, 1000);
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    port = atoi(argv[2]);
    int file = open(argv[3], O_RDONLY);
    struct stat info;
    if (file < 0 || fstat(file, &info)) { perror(argv[3]); return 1; }
    request_len = info.st_size;
    request = malloc(request_len);
    if (read(file, request, request_len) != (ssize_t)request_len) return 1;
    counter = memmem(request, request_len, "session-0000000000", 18);
    if (counter) counter += 8;
    double n = atof(argv[4]), seconds = atof(argv[5]);
    ep = epoll_create1(0);
    started = now_ns();
    stop_at = started + (int64_t)(seconds * 1e9);
    half = started + (stop_at - started) / 2;
    printf("{");
    if (!strcmp(argv[1], "open")) run_open(n);
    else {
        streams_mode = !strcmp(argv[1], "streams");
        run_closed((int)n, argc > 6 ? atof(argv[6]) : 0);
    }
    double took = (now_ns() - started) / 1e9;
    printf("\"good\":%ld,\"bad\":%ld,\"refused\":%ld,\"seconds\":%.3f,\"rps\":%.1f,\"chunks\":%ld,\"bytes\":%lld,\"why\":\"%s\"", good, bad, refused, took,
           good / took, chunk_count, bytes_read, why);
    report("latency", &latency);
    report("ttft", &ttft);
    report("delay", &delay_all);
    report("delay_first_half", &delay_first);
    report("delay_second_half", &delay_second);
    printf("}\n");
    return 0;
}
