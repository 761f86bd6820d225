/* The mock engine of the benchmarks: one thread, one epoll, answers like a vLLM that needs no time to think.
 *
 *   mock PORT [MARKER ...]        listens on 127.0.0.1
 *
 * POST anything      "stream":true in the body: server-sent events, one per interval, each holding the time it was
 *                    written (@@ and 19 digits of CLOCK_MONOTONIC nanoseconds); otherwise one JSON answer.
 * GET /_set?chunks=N&interval_us=N   form of the streams from now on; interval 0: as fast as the reader reads
 * GET /_stats        JSON: requests, bodies with each MARKER, bytes, requests with authorization, disconnects
 * GET /_last         the body of the last POST; /_head: its head
 * GET anything else  {"status":"ok"} and the fields that routers look for in models and server information
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
#include <strings.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define MAX_FD 65536
#define MAX_MARKERS 4
#define FLAT_BATCH 16

typedef struct {
    int fd, open, chunked, wants_usage;
    char *in;              /* bytes received: head and body of the request being read */
    size_t in_len, in_cap;
    size_t head_len, body_len; /* known once the head is complete (head_len > 0) */
    size_t scan;           /* how far a chunked body has been decoded */
    char *out;             /* bytes that the socket did not take yet */
    size_t out_len, out_cap;
    int streaming;         /* chunks left to send; 0: not streaming */
    int heap;              /* place in the timer heap, -1: none */
    int64_t due;
} conn;

static conn *conns[MAX_FD];
static int ep;
static long requests, disconnects, authorized, marked[MAX_MARKERS];
static long long body_bytes;
static char *markers[MAX_MARKERS];
static int marker_count;
static int chunks = 100;
static int64_t interval_ns = 5000000;
static char *last_body, *last_head;
static size_t last_body_len, last_head_len;

static int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

/* --- timers: a binary heap on the time that the next chunk is due --- */

static conn *heap[MAX_FD];
static int heap_len;

static void heap_put(int i, conn *c) { heap[i] = c; c->heap = i; }

static void heap_fix(int i) {
    conn *c = heap[i];
    while (i > 0 && heap[(i - 1) / 2]->due > c->due) { heap_put(i, heap[(i - 1) / 2]); i = (i - 1) / 2; }
    for (;;) {
        int k = 2 * i + 1;
        if (k >= heap_len) break;
        if (k + 1 < heap_len && heap[k + 1]->due < heap[k]->due) k++;
        if (heap[k]->due >= c->due) break;
        heap_put(i, heap[k]);
        i = k;
    }
    heap_put(i, c);
}

static void timer_set(conn *c, int64_t due) {
    c->due = due;
    if (c->heap < 0) { c->heap = heap_len; heap[heap_len++] = c; }
    heap_fix(c->heap);
}

static void timer_clear(conn *c) {
    if (c->heap < 0) return;
    int i = c->heap;
    c->heap = -1;
    conn *moved = heap[--heap_len];
    if (moved != c) { heap_put(i, moved); heap_fix(i); }
}

/* --- writing --- */

static void watch(conn *c, int writing) {
    struct epoll_event e = {.events = EPOLLIN | EPOLLRDHUP | (writing ? EPOLLOUT : 0), .data.fd = c->fd};
    epoll_ctl(ep, EPOLL_CTL_MOD, c->fd, &e);
}

static void put(conn *c, const char *data, size_t len) {
    if (c->out_len == 0) {
        ssize_t n = send(c->fd, data, len, MSG_NOSIGNAL);
        if (n == (ssize_t)len) return;
        if (n < 0) { if (errno != EAGAIN) return; n = 0; }
        data += n;
        len -= n;
        watch(c, 1);
    }
    if (c->out_len + len > c->out_cap) {
        c->out_cap = (c->out_len + len) * 2;
        c->out = realloc(c->out, c->out_cap);
    }
    memcpy(c->out + c->out_len, data, len);
    c->out_len += len;
}

static void drop(conn *c) {
    if (!c->open) return;
    if (c->streaming || (c->in_len && c->head_len)) disconnects++;
    c->open = 0;
    timer_clear(c);
    close(c->fd);
    conns[c->fd] = NULL;
    free(c->in);
    free(c->out);
    free(c);
}

static void json(conn *c, const char *body, size_t len, const char *kind) {
    char head[256];
    int n = snprintf(head, sizeof head, "HTTP/1.1 200 OK\r\nserver: mock\r\ncontent-type: %s\r\ncontent-length: %zu\r\n\r\n", kind, len);
    char *all = malloc(n + len);
    memcpy(all, head, n);
    memcpy(all + n, body, len);
    put(c, all, n + len);
    free(all);
}

/* --- streams --- */

#define EVENT_HEAD "data: {\"id\":\"chatcmpl-0123456789abcdef0123456789abcdef\",\"object\":\"chat.completion.chunk\",\"created\":1700000000,\"model\":\"bench-model\",\"choices\":["

static size_t framed(char *to, const char *event, size_t len) {
    size_t n = sprintf(to, "%zx\r\n", len);
    memcpy(to + n, event, len);
    memcpy(to + n + len, "\r\n", 2);
    return n + len + 2;
}

static size_t content_event(char *to) {
    char event[512];
    int n = snprintf(event, sizeof event,
                     EVENT_HEAD "{\"index\":0,\"delta\":{\"content\":\"@@%019lld\"},\"logprobs\":null,\"finish_reason\":null,\"token_ids\":null}]}\n\n",
                     (long long)now_ns());
    return framed(to, event, n);
}

static void stream_begin(conn *c) {
    char data[2048];
    size_t n = sprintf(data, "HTTP/1.1 200 OK\r\nserver: mock\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n");
    static const char first[] = EVENT_HEAD "{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"\"},\"logprobs\":null,\"finish_reason\":null}]}\n\n";
    n += framed(data + n, first, sizeof first - 1);
    n += content_event(data + n);
    put(c, data, n);
    c->streaming = chunks;
    if (interval_ns) timer_set(c, now_ns() + interval_ns);
}

static void stream_end(conn *c) {
    static const char last[] = EVENT_HEAD "{\"index\":0,\"delta\":{\"content\":\"\"},\"logprobs\":null,\"finish_reason\":\"stop\",\"stop_reason\":null}]}\n\n";
    static const char done[] = "data: [DONE]\n\n";
    char usage[512], data[2048];
    size_t n = framed(data, last, sizeof last - 1);
    if (c->wants_usage) {
        int u = sprintf(usage, "data: {\"id\":\"chatcmpl-0123456789abcdef0123456789abcdef\",\"object\":\"chat.completion.chunk\",\"created\":1700000000,\"model\":\"bench-model\",\"choices\":[],\"usage\":{\"prompt_tokens\":20,\"total_tokens\":%d,\"completion_tokens\":%d,\"prompt_tokens_details\":{\"cached_tokens\":16}}}\n\n", 21 + chunks, 1 + chunks);
        n += framed(data + n, usage, u);
    }
    n += framed(data + n, done, sizeof done - 1);
    memcpy(data + n, "0\r\n\r\n", 5);
    c->streaming = 0;
    put(c, data, n + 5);
}

static void stream_step(conn *c) {
    char data[512];
    put(c, data, content_event(data));
    if (--c->streaming <= 0) { timer_clear(c); stream_end(c); return; }
    timer_set(c, c->due + interval_ns);
}

static void stream_flat(conn *c) {
    char data[512 * FLAT_BATCH];
    while (c->streaming && c->out_len == 0) {
        size_t n = 0;
        int batch = c->streaming < FLAT_BATCH ? c->streaming : FLAT_BATCH;
        for (int i = 0; i < batch; i++) n += content_event(data + n);
        put(c, data, n);
        if ((c->streaming -= batch) == 0) stream_end(c);
    }
}

/* --- requests --- */

static void keep(char **to, size_t *to_len, const char *from, size_t len) {
    *to = realloc(*to, len + 1);
    memcpy(*to, from, len);
    *to_len = len;
}

static void stats(conn *c) {
    char body[512];
    int n = sprintf(body, "{\"requests\":%ld,\"disconnects\":%ld,\"authorized\":%ld,\"body_bytes\":%lld,\"marked\":[", requests, disconnects, authorized, body_bytes);
    for (int i = 0; i < marker_count; i++) n += sprintf(body + n, "%s%ld", i ? "," : "", marked[i]);
    n += sprintf(body + n, "]}");
    json(c, body, n, "application/json");
}

static void get(conn *c, const char *path) {
    if (!strncmp(path, "/_set?", 6)) {
        const char *v;
        if ((v = strstr(path, "chunks="))) chunks = atoi(v + 7);
        if ((v = strstr(path, "interval_us="))) interval_ns = atoll(v + 12) * 1000;
    }
    if (!strncmp(path, "/_last", 6)) { json(c, last_body ? last_body : "", last_body_len, "application/json"); return; }
    if (!strncmp(path, "/_head", 6)) { json(c, last_head ? last_head : "", last_head_len, "text/plain"); return; }
    if (!strncmp(path, "/_stats", 7)) { stats(c); return; }
    static const char info[] = "{\"status\":\"ok\",\"version\":\"0.32.0\",\"object\":\"list\",\"model_path\":\"bench-model\",\"served_model_name\":\"bench-model\",\"is_generation\":true,"
                               "\"data\":[{\"id\":\"bench-model\",\"object\":\"model\",\"created\":1700000000,\"owned_by\":\"vllm\",\"root\":\"bench-model\",\"max_model_len\":1048576}]}";
    json(c, info, sizeof info - 1, "application/json");
}

static void post(conn *c, const char *body, size_t len) {
    static const char answer[] = "{\"id\":\"chatcmpl-0123456789abcdef0123456789abcdef\",\"object\":\"chat.completion\",\"created\":1700000000,\"model\":\"bench-model\",\"choices\":[{\"index\":0,"
                                 "\"message\":{\"role\":\"assistant\",\"content\":\"answer-of-the-mock\",\"refusal\":null,\"annotations\":null,\"tool_calls\":[],\"reasoning\":null},\"logprobs\":null,"
                                 "\"finish_reason\":\"stop\",\"stop_reason\":null}],\"service_tier\":null,\"usage\":{\"prompt_tokens\":20,\"total_tokens\":25,\"completion_tokens\":5,"
                                 "\"prompt_tokens_details\":{\"cached_tokens\":16}},\"prompt_logprobs\":null}";
    requests++;
    body_bytes += len;
    for (int i = 0; i < marker_count; i++)
        if (memmem(body, len, markers[i], strlen(markers[i]))) marked[i]++;
    if (memmem(c->in, c->head_len, "uthorization: Bearer upstream-secret", 36)) authorized++;
    keep(&last_body, &last_body_len, body, len);
    keep(&last_head, &last_head_len, c->in, c->head_len);
    if (memmem(body, len, "\"stream\":true", 13) || memmem(body, len, "\"stream\": true", 14)) {
        c->wants_usage = memmem(body, len, "include_usage", 13) != NULL;
        stream_begin(c);
        if (!interval_ns) stream_flat(c);
    } else {
        json(c, answer, sizeof answer - 1, "application/json");
    }
}

/* Decodes a chunked body in place behind the head; 1 when it is complete. `used` is where the next request starts. */
static int dechunk(conn *c, size_t *used) {
    size_t at = c->scan;
    for (;;) {
        char *eol = memmem(c->in + at, c->in_len - at, "\r\n", 2);
        if (!eol) return 0;
        size_t size = strtoul(c->in + at, NULL, 16), data = eol + 2 - c->in;
        if (data + size + 2 > c->in_len) return 0;
        memmove(c->in + c->head_len + c->body_len, c->in + data, size);
        c->body_len += size;
        at = c->scan = data + size + 2;
        if (size == 0) { *used = at; return 1; }
    }
}

static char *header(conn *c, const char *name) {
    size_t len = strlen(name);
    char *end = c->in + c->head_len;
    for (char *p = c->in; (p = memmem(p, end - p, "\r\n", 2)); ) {
        p += 2;
        if (p + len < end && !strncasecmp(p, name, len)) return p + len;
    }
    return NULL;
}

/* Handles one request if it is complete; 1 if there may be another. */
static int step(conn *c) {
    size_t used;
    if (c->streaming) return 0;
    if (!c->head_len) {
        char *end = memmem(c->in, c->in_len, "\r\n\r\n", 4);
        if (!end) return 0;
        c->head_len = end + 4 - c->in;
        char *length = header(c, "content-length:"), *coding = header(c, "transfer-encoding:");
        c->chunked = coding != NULL;
        c->body_len = c->chunked ? 0 : length ? strtoul(length, NULL, 10) : 0;
        c->scan = c->head_len;
        if (header(c, "expect:")) put(c, "HTTP/1.1 100 Continue\r\n\r\n", 25);
    }
    if (c->chunked) {
        if (!dechunk(c, &used)) return 0;
    } else {
        used = c->head_len + c->body_len;
        if (used > c->in_len) return 0;
    }
    if (!memcmp(c->in, "POST ", 5)) post(c, c->in + c->head_len, c->body_len);
    else { char *sp = memchr(c->in + 4, ' ', c->head_len - 4); if (sp) *sp = 0; get(c, c->in + 4); }
    memmove(c->in, c->in + used, c->in_len - used);
    c->in_len -= used;
    c->head_len = c->body_len = 0;
    return c->in_len > 0;
}

static void readable(conn *c) {
    for (;;) {
        size_t want = c->head_len && !c->chunked ? c->head_len + c->body_len + 1 : c->in_len + 16384;
        if (want < c->in_len + 16384) want = c->in_len + 16384;
        if (want > c->in_cap) { c->in_cap = want * 2; c->in = realloc(c->in, c->in_cap); }
        ssize_t n = recv(c->fd, c->in + c->in_len, c->in_cap - c->in_len, 0);
        if (n == 0 || (n < 0 && errno != EAGAIN)) { drop(c); return; }
        if (n < 0) return;
        c->in_len += n;
        while (step(c)) ;
        if (c->in_len < c->in_cap && n < 16384) return;
    }
}

static void writable(conn *c) {
    ssize_t n = send(c->fd, c->out, c->out_len, MSG_NOSIGNAL);
    if (n < 0) { if (errno != EAGAIN) drop(c); return; }
    memmove(c->out, c->out + n, c->out_len - n);
    c->out_len -= n;
    if (c->out_len) return;
    watch(c, 0);
    if (c->streaming && c->heap < 0) stream_flat(c);
    if (c->in_len) while (step(c)) ;
}

static void accept_all(int listener) {
    int fd, one = 1;
    while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        conn *c = calloc(1, sizeof *c);
        c->fd = fd; c->open = 1; c->heap = -1;
        conns[fd] = c;
        struct epoll_event e = {.events = EPOLLIN | EPOLLRDHUP, .data.fd = fd};
        epoll_ctl(ep, EPOLL_CTL_ADD, fd, &e);
    }
}

int main(int argc, char **argv) {
    if (argc < 2) { fprintf(stderr, "usage: mock PORT [MARKER ...]\n"); return 2; }
    for (int i = 2; i < argc && marker_count < MAX_MARKERS; i++) markers[marker_count++] = argv[i];
    signal(SIGPIPE, SIG_IGN);
    prctl(PR_SET_TIMERSLACK, 1000);
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), one = 1;
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(atoi(argv[1])), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    if (bind(listener, (struct sockaddr *)&at, sizeof at) || listen(listener, 4096)) { perror("mock"); return 1; }
    ep = epoll_create1(0);
    struct epoll_event e = {.events = EPOLLIN, .data.fd = listener}, seen[256];
    epoll_ctl(ep, EPOLL_CTL_ADD, listener, &e);
    for (;;) {
        struct timespec wait = {3600, 0};
        if (heap_len) {
            int64_t left = heap[0]->due - now_ns();
            if (left < 0) left = 0;
            wait.tv_sec = left / 1000000000LL;
            wait.tv_nsec = left % 1000000000LL;
        }
        int n = epoll_pwait2(ep, seen, 256, &wait, NULL);
        for (int i = 0; i < n; i++) {
            int fd = seen[i].data.fd;
            if (fd == listener) { accept_all(listener); continue; }
            if (conns[fd] && (seen[i].events & EPOLLOUT)) writable(conns[fd]);
            if (conns[fd] && (seen[i].events & ~EPOLLOUT)) readable(conns[fd]);
        }
        int64_t t = now_ns();
        while (heap_len && heap[0]->due <= t) stream_step(heap[0]);
    }
}
