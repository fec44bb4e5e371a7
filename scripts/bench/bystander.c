/* bystander BATCHES: ns per getppid() of a process that nobody traces, the quickest of some batches. */
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	double best = 1e9;
	for (int batch = argc > 1 ? atoi(argv[1]) : 50; batch > 0; batch--) {
		struct timespec from, to;
		clock_gettime(CLOCK_MONOTONIC, &from);
		for (int i = 0; i < 20000; i++)
			syscall(SYS_getppid);
		clock_gettime(CLOCK_MONOTONIC, &to);
		double ns = ((to.tv_sec - from.tv_sec) * 1e9 + to.tv_nsec - from.tv_nsec) / 20000;
		if (ns < best)
			best = ns;
	}
	printf("%.1f\n", best);
	return 0;
}
