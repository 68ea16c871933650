/* tls_sink PORT CERTIFICATE.pem: an SMTP server that does complete TLS sessions only, in one thread.

   Banner, EHLO, STARTTLS, TLS 1.3 handshake that asks for a client certificate and takes any, EHLO, QUIT.  It decides
   nothing, logs nothing and has no time-outs: what a session costs here is the kernel, OpenSSL and little else. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#define EHLO(STARTTLS)                                                                                                 \
    "250-sink Hello [127.0.0.1]\r\n250-SIZE 37748736\r\n250-PIPELINING\r\n250-DSN\r\n250-ENHANCEDSTATUSCODES\r\n"      \
    STARTTLS "250-8BITMIME\r\n250-BINARYMIME\r\n250 CHUNKING\r\n"

enum { ROOM = 2048 };

struct session {
    int fd;
    SSL *ssl; /* NULL while in clear */
    int used;
    char input[ROOM + 1]; /* received and not answered yet, and a NUL */
};

static SSL_CTX *context;

static int accept_any(int ok, X509_STORE_CTX *store) {
    (void)ok, (void)store;
    return 1;
}

static void must(int ok, const char *what) {
    if (!ok) {
        perror(what);
        ERR_print_errors_fp(stderr);
        exit(1);
    }
}

/* Replies are shorter than any send buffer: one that does not leave whole is a failure. */
static int say(struct session *s, const char *reply) {
    int length = (int)strlen(reply);
    return (s->ssl ? SSL_write(s->ssl, reply, length) : (int)write(s->fd, reply, length)) == length;
}

/* Answers one line; 0 ends the session. */
static int answer(struct session *s, const char *line) {
    if (!strncasecmp(line, "EHLO ", 5))
        return say(s, s->ssl ? EHLO("") : EHLO("250-STARTTLS\r\n"));
    if (!strcasecmp(line, "STARTTLS") && !s->ssl) {
        s->used = 0; /* what came behind it in clear is nothing [RFC 3207, section 4.2] */
        if (!say(s, "220 2.0.0 SMTP server ready\r\n") || !(s->ssl = SSL_new(context)) || !SSL_set_fd(s->ssl, s->fd))
            return 0;
        SSL_set_accept_state(s->ssl);
        return 1;
    }
    if (!strcasecmp(line, "QUIT")) {
        if (say(s, "221 2.0.0 Service closing transmission channel\r\n") && s->ssl)
            SSL_shutdown(s->ssl);
        return 0;
    }
    return say(s, "500 5.3.3 Unrecognized command\r\n");
}

/* Answers each line that is there; 0 ends the session. */
static int answer_all(struct session *s) {
    char *end;
    s->input[s->used] = 0;
    while ((end = strstr(s->input, "\r\n"))) {
        int length = (int)(end + 2 - s->input);
        *end = 0;
        s->used -= length;
        if (!answer(s, s->input))
            return 0;
        memmove(s->input, s->input + length, s->used);
        s->input[s->used] = 0;
    }
    return s->used < ROOM;
}

/* Reads what has arrived; 0 ends the session. */
static int serve(struct session *s) {
    do {
        char *into = s->input + s->used;
        int got;
        if (s->ssl) {
            ERR_clear_error();
            got = SSL_read(s->ssl, into, ROOM - s->used); /* does the handshake first */
            if (got <= 0)
                return SSL_get_error(s->ssl, got) == SSL_ERROR_WANT_READ;
        } else if ((got = (int)read(s->fd, into, ROOM - s->used)) <= 0)
            return 0;
        s->used += got;
        if (!answer_all(s))
            return 0;
    } while (s->ssl && SSL_has_pending(s->ssl)); /* epoll does not see what OpenSSL has read ahead */
    return 1;
}

static void drop(struct session *s) {
    SSL_free(s->ssl);
    close(s->fd);
    free(s);
}

static void welcome(int listener, int poll) {
    int fd;
    while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
        struct session *s = malloc(sizeof *s);
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = s};
        must(s != NULL, "malloc");
        s->fd = fd, s->ssl = NULL, s->used = 0;
        if (!say(s, "220 sink Microsoft ESMTP MAIL Service ready\r\n") || epoll_ctl(poll, EPOLL_CTL_ADD, fd, &event))
            drop(s);
    }
}

static void prepare(const char *pem) {
    context = SSL_CTX_new(TLS_server_method());
    must(context != NULL, "SSL_CTX_new");
    must(SSL_CTX_set_min_proto_version(context, TLS1_3_VERSION), "TLS 1.3");
    must(SSL_CTX_set_ciphersuites(
             context, "TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256"), "suites");
    must(SSL_CTX_use_certificate_chain_file(context, pem) == 1, pem);
    must(SSL_CTX_use_PrivateKey_file(context, pem, SSL_FILETYPE_PEM) == 1, pem);
    SSL_CTX_set_options(context, SSL_OP_CIPHER_SERVER_PREFERENCE);
    SSL_CTX_set_verify(context, SSL_VERIFY_PEER, accept_any);
    SSL_CTX_set_session_cache_mode(context, SSL_SESS_CACHE_OFF);
    SSL_CTX_set_num_tickets(context, 0);
    SSL_CTX_set_read_ahead(context, 1); /* one read of the socket for all records that are there, not two for each */
}

int main(int count, char **arguments) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct epoll_event events[64] = {{.events = EPOLLIN}}; /* data.ptr NULL is the listener */
    int poll = epoll_create1(EPOLL_CLOEXEC), on = 1;
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    must(count == 3, "tls_sink PORT CERTIFICATE.pem");
    signal(SIGPIPE, SIG_IGN);
    prepare(arguments[2]);
    address.sin_port = htons((unsigned short)atoi(arguments[1]));
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    setsockopt(listener, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on); /* the sockets that it accepts inherit it */
    puts(OpenSSL_version(OPENSSL_VERSION)); /* for the results */
    fflush(stdout);
    must(!bind(listener, (struct sockaddr *)&address, sizeof address) && !listen(listener, 1024), "listen");
    must(!epoll_ctl(poll, EPOLL_CTL_ADD, listener, events), "epoll_ctl");
    for (;;) {
        int ready = epoll_wait(poll, events, 64, -1);
        for (int i = 0; i < ready; i++) {
            struct session *s = events[i].data.ptr;
            if (s == NULL)
                welcome(listener, poll);
            else if (!serve(s))
                drop(s);
        }
    }
}
