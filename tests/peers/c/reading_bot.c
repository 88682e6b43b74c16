/* A bot as people write them: listens at a path, reads once up to 8192 bytes, answers OK, closes.
 *
 * usage: reading_bot PATH COUNT    prints "ready", then each message between brackets, and ends after COUNT of them
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

static void fail(const char *what)
{
    perror(what);
    exit(1);
}

int main(int argc, char **argv)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    char buffer[8193];
    if (argc != 3)
        return 2;
    strncpy(address.sun_path, argv[1], sizeof address.sun_path - 1);
    int listener = socket(AF_UNIX, SOCK_STREAM, 0);
    if (listener < 0 || bind(listener, (struct sockaddr *)&address, sizeof address) < 0 || listen(listener, 5) < 0)
        fail("listen");
    puts("ready");
    fflush(stdout);
    for (int left = atoi(argv[2]); left > 0; left--) {
        int connection = accept(listener, NULL, NULL);
        if (connection < 0)
            fail("accept");
        ssize_t length = read(connection, buffer, 8192);
        if (length < 0)
            fail("read");
        buffer[length] = '\0';
        printf("[%s]\n", buffer);
        fflush(stdout);
        if (write(connection, "OK", 2) != 2)
            fail("write");
        close(connection);
    }
    unlink(argv[1]);
    return 0;
}
