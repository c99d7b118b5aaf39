/* Exchanges two names as fast as the kernel can, until it is told to end.
 *
 * usage: flipper A B COUNTER     A and B: paths to exchange; COUNTER: a file of 8 bytes, mapped, in
 *                                which the exchanges that worked are counted
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>

static volatile sig_atomic_t ended;

static void end(int number) {
    (void)number;
    ended = 1;
}

int main(int count, char **arguments) {
    if (count != 4) return 2;
    int file = open(arguments[3], O_RDWR);
    volatile uint64_t *flips = mmap(NULL, 8, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (flips == MAP_FAILED) {
        perror("flipper");
        return 1;
    }
    signal(SIGTERM, end);
    while (!ended)
        if (renameat2(AT_FDCWD, arguments[1], AT_FDCWD, arguments[2], RENAME_EXCHANGE) == 0)
            (*flips)++;
    return 0;
}
