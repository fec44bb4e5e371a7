// Forks while signals come, with a handler that lets no call begin again, and prints how many forks a
// signal ended. A kernel by itself ends none.
//
//     forks NUMBER
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

static void nothing(int signal)
{
	(void)signal;
}

int main(int argc, char **argv)
{
	struct sigaction act = { .sa_handler = nothing };
	struct itimerval every = { { 0, 200 }, { 0, 200 } }, never = { { 0, 0 }, { 0, 0 } };
	int ended = 0;
	sigaction(SIGALRM, &act, 0);
	setitimer(ITIMER_REAL, &every, 0);
	for (int left = argc > 1 ? atoi(argv[1]) : 0; left; left--) {
		long pid = syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0);
		if (!pid) _exit(0);
		if (pid < 0 && errno == EINTR) ended++;
		while (pid > 0 && waitpid(pid, 0, 0) < 0 && errno == EINTR) {}
	}
	setitimer(ITIMER_REAL, &never, 0);
	while (printf("%d\n", ended) < 0 || fflush(stdout)) {}
	return 0;
}
