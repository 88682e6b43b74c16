/* A token program as people write them: sends JSON without a newline, keeps the connection open, and waits for OK.
 *
 * usage: waiting_sender PATH < message    prints what was answered; exit code 0 only when that is exactly OK
 */
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

int main(int argc, char **argv)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    char message[65536], answer[512] = {0};
    if (argc != 2)
        return 2;
    size_t length = fread(message, 1, sizeof message, stdin);
    strncpy(address.sun_path, argv[1], sizeof address.sun_path - 1);
    int sock = socket(AF_UNIX, SOCK_STREAM, 0);
    if (sock < 0 || connect(sock, (struct sockaddr *)&address, sizeof address) < 0) {
        perror("connect");
        return 1;
    }
    if (write(sock, message, length) != (ssize_t)length) {
        perror("write");
        return 1;
    }
    if (read(sock, answer, sizeof answer - 1) < 0) {
        perror("read");
        return 1;
    }
    printf("%s\n", answer);
    close(sock);
    return strcmp(answer, "OK") != 0;
}
