/* A part of the stand-in system that benches/system.py starts.
 *
 * part SECONDS PORT        listens on 127.0.0.1:PORT so long after its start and
 *                          answers every connection as a web server does; PORT
 *                          0: only lives
 * part ask PORT            exit status 0 if somebody listens there
 * part away SECONDS PORT   puts itself into the background first, as a service
 *                          manager's daemon does, and says its number in PORT.pid
 */
#include <arpa/inet.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static const char answer[] = "HTTP/1.0 200 OK\r\n\r\nhello\n";

int main(int argc, char **argv) {
    if (argc == 4 && strcmp(argv[1], "away") == 0) {
        if (fork() > 0)
            return 0;
        setsid();
        char name[64];
        snprintf(name, sizeof name, "%s.pid", argv[3]);
        FILE *file = fopen(name, "w");
        if (file == NULL || fprintf(file, "%d\n", (int)getpid()) < 0 || fclose(file) != 0)
            return 1;
        argv++;
        argc--;
    }
    if (argc != 3)
        return 2;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((unsigned short)atoi(argv[2]))};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int server = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (strcmp(argv[1], "ask") == 0)
        return connect(server, (struct sockaddr *)&address, sizeof address) != 0;
    double seconds = atof(argv[1]);
    struct timespec delay = {(time_t)seconds, (long)((seconds - (double)(time_t)seconds) * 1e9)};
    nanosleep(&delay, NULL);
    if (address.sin_port == 0)
        for (;;)
            pause();
    int one = 1;
    setsockopt(server, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(server, (struct sockaddr *)&address, sizeof address) != 0 || listen(server, 16) != 0) {
        perror("part");
        return 1;
    }
    signal(SIGPIPE, SIG_IGN);
    for (;;) {
        char request[4096];
        int connection = accept(server, NULL, NULL);
        if (connection < 0)
            continue;
        if (read(connection, request, sizeof request) > 0 &&
            write(connection, answer, sizeof answer - 1) < 0)
            perror("part");
        close(connection);
    }
}
