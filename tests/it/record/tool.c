// A program that does what its words say, one after the other: runtime, entrypoint and application
// of the recorder's tests. Built static, so that it needs no other file.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <netinet/in.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include "../support/uring.h"

static void must(int ok, const char *what)
{
	if (ok) return;
	fprintf(stderr, "tool: %s: %s\n", what, strerror(errno));
	_exit(99);
}

// Answers getppid with EPERM.
static void refuse_getppid(void)
{
	struct sock_filter code[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, 0),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_getppid, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog prog = { 4, code };
	must(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0, "no_new_privs");
	must(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &prog) == 0, "seccomp");
	syscall(SYS_getppid);
}

static void ignore(int signal) { (void)signal; }

// Two filters: one that looks at an argument, through all kinds of instructions, and one that goes by
// numbers. Then calls that they refuse, that the kernel fails, and that end their process.
static void judge(void)
{
	struct sock_filter first[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, 0),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_getpriority, 0, 12),
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, 16),
		BPF_STMT(BPF_ALU | BPF_AND | BPF_K, 0xffff),
		BPF_STMT(BPF_ST, 3),
		BPF_STMT(BPF_LDX | BPF_MEM, 3),
		BPF_STMT(BPF_LD | BPF_IMM, 33),
		BPF_STMT(BPF_ALU | BPF_MUL | BPF_K, 3),
		BPF_STMT(BPF_JMP | BPF_JA, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_X, 0, 0, 3),
		BPF_STMT(BPF_LD | BPF_IMM, SECCOMP_RET_ERRNO),
		BPF_STMT(BPF_ALU | BPF_OR | BPF_K, EINVAL),
		BPF_STMT(BPF_RET | BPF_A, 0),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	}, second[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, 0),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_sysinfo, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_getsid, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRAP),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_getpgid, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_prctl, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog one = { sizeof first / 8, first }, two = { sizeof second / 8, second };
	must(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0, "no_new_privs");
	must(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &one) == 0, "seccomp");
	// refused only, until here
	must(syscall(SYS_getpriority, 99, 0) == -1 && errno == EINVAL, "getpriority");
	must(syscall(SYS_sched_yield) == 0, "sched_yield");
	must(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &two) == 0, "seccomp");
	must(prctl(PR_GET_DUMPABLE) == -1 && errno == EPERM, "prctl");
	must(syscall(SYS_getpriority, 98, 0) == -1 && errno == EINVAL, "getpriority");
	must(syscall(SYS_sysinfo, 0) == 0, "sysinfo");
	signal(SIGSYS, ignore);
	syscall(SYS_getsid, 0);
	if (!fork()) syscall(SYS_getpgid, 0), _exit(1);
	int status;
	wait(&status);
	must(WIFSIGNALED(status), "kill");
}

// The 32-bit call `nr`, from a 64-bit program.
static int compat(int nr, const void *a, const void *b)
{
	int ret;
	__asm__ volatile("int $0x80" : "=a"(ret) : "a"(nr), "b"(a), "c"(b), "d"(0) : "memory", "r8", "r9", "r10", "r11");
	return ret;
}

// A call of a drawn filter's test, as it is read, and what came of it.
struct probe { unsigned arch, nr; unsigned long args[6]; } __attribute__((packed));
struct answer { unsigned long ip; long result, trapped, done; };
static struct answer *answering;

static void trapped(int signal)
{
	(void)signal;
	answering->trapped = 1;
}

// Makes the call by an instruction whose address is told first.
static void make(const struct probe *p, struct answer *answer)
{
	register long r10 __asm__("r10") = p->args[3], r8 __asm__("r8") = p->args[4], r9 __asm__("r9") = p->args[5];
	long ret;
	answering = answer;
	if (p->arch) {
		__asm__ volatile("lea 1f(%%rip), %%rdx; mov %%rdx, %1; mov %2, %%rdx; mov %%rbp, %%r12; xor %%ebp, %%ebp\n"
				 "int $0x80\n1: mov %%r12, %%rbp"
				 : "=a"(ret), "=m"(answer->ip) : "m"(p->args[2]), "a"(p->nr), "b"(p->args[0]), "c"(p->args[1]),
				   "S"(p->args[3]), "D"(p->args[4]) : "rdx", "memory", "r8", "r9", "r10", "r11", "r12");
		ret = (int)ret;
	} else {
		__asm__ volatile("lea 1f(%%rip), %%rcx; mov %%rcx, %1\nsyscall\n1:"
				 : "=a"(ret), "=m"(answer->ip) : "a"((long)p->nr), "D"(p->args[0]), "S"(p->args[1]),
				   "d"(p->args[2]), "r"(r10), "r"(r8), "r"(r9) : "rcx", "r11", "memory");
	}
	answer->result = ret;
	answer->done = 1;
}

// Loads the filters that come next in a file, into the current process.
static void load(FILE *from, unsigned filters)
{
	static struct sock_filter code[256];
	unsigned len;
	must(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0, "no_new_privs");
	while (filters--) {
		must(fread(&len, 4, 1, from) == 1 && len <= 256 && fread(code, 8, len, from) == len, "filter");
		struct sock_fprog prog = { len, code };
		must(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &prog) == 0, "seccomp");
	}
}

// Groups of filters and calls from one file; the calls' results go into another, a line each. Each group has
// a process with its filters, and each call one of that one's, with nothing open that it could harm.
static void filters(const char *from, const char *to)
{
	static struct probe probes[64];
	struct answer *answers = mmap(0, sizeof *answers * 64, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	unsigned count, len;
	FILE *in = fopen(from, "r"), *out = fopen(to, "w");
	must(in && out, from);
	setvbuf(in, 0, _IONBF, 0); // the child reads on where its parent is
	while (fread(&count, 4, 1, in) == 1) {
		long start = ftell(in);
		for (unsigned n = 0; n < count; n++)
			must(fread(&len, 4, 1, in) == 1 && fseek(in, 8 * len, SEEK_CUR) == 0, from);
		must(fread(&len, 4, 1, in) == 1 && len <= 64 && fread(probes, sizeof *probes, len, in) == len, from);
		long end = ftell(in);
		memset(answers, 0, sizeof *answers * 64);
		fflush(out);
		int status;
		if (!fork()) {
			signal(SIGSYS, trapped);
			fseek(in, start, SEEK_SET);
			if (count) load(in, count);
			for (unsigned n = 0; n < len; n++) {
				pid_t pid = fork();
				if (!pid) {
					for (int fd = 0; fd < 64; fd++) close(fd);
					make(&probes[n], &answers[n]);
					_exit(0);
				}
				waitpid(pid, &status, 0);
			}
			_exit(0);
		}
		wait(&status);
		must(status == 0, "filters");
		fseek(in, end, SEEK_SET);
		for (unsigned n = 0; n < len; n++)
			fprintf(out, "%ld %ld %ld %ld\n", answers[n].ip, answers[n].result, answers[n].trapped, answers[n].done);
	}
	fclose(out);
}

static char **thread_argv;

static void *exec_in_thread(void *none)
{
	execv(thread_argv[0], thread_argv);
	must(0, thread_argv[0]);
	return none;
}

// One unit of work, by name. `new`: files /tmp/0 … that are there or not, each once.
static void work(const char *what, int n)
{
	struct stat st;
	char name[64];
	if (!strcmp(what, "getppid")) {
		syscall(SYS_getppid);
	} else if (!strcmp(what, "same")) {
		stat("/etc/passwd", &st);
	} else if (!strcmp(what, "new")) {
		snprintf(name, sizeof name, "/tmp/%d", n);
		stat(name, &st);
	} else if (!strcmp(what, "relative")) {
		snprintf(name, sizeof name, "%d", n);
		stat(name, &st);
	} else if (!strcmp(what, "spawn")) {
		pid_t child = vfork();
		if (!child) execl("/bin/tool", "tool", (char *)0), _exit(1);
		waitpid(child, 0, 0);
	} else {
		must(0, what);
	}
}

static void bench(const char *what, int count)
{
	struct timespec from, to;
	for (int n = 0; n < count / 10; n++) work(what, -1 - n);
	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &from);
	for (int n = 0; n < count; n++) work(what, n);
	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &to);
	double ns = (to.tv_sec - from.tv_sec) * 1e9 + (to.tv_nsec - from.tv_nsec);
	printf("%s %.1f\n", what, ns / count);
}

int main(int argc, char **argv)
{
	struct stat st;
	char buf[4096];
	for (int i = 1; i < argc; i++) {
		char *op = argv[i], *a = i + 1 < argc ? argv[i + 1] : "";
		if (!strcmp(op, "join")) {
			snprintf(buf, sizeof buf, "%s/cgroup.procs", a);
			int fd = open(buf, O_WRONLY);
			must(fd >= 0 && write(fd, "0", 1) == 1, a);
			close(fd), i++;
		} else if (!strcmp(op, "newns")) {
			must(unshare(CLONE_NEWNS) == 0, op);
			must(mount(0, "/", 0, MS_REC | MS_PRIVATE, 0) == 0, op);
		} else if (!strcmp(op, "chroot")) {
			must(chroot(a) == 0 && chdir("/") == 0, a), i++;
		} else if (!strcmp(op, "pivot")) {
			must(mount(a, a, 0, MS_BIND, 0) == 0 && chdir(a) == 0, a), i++;
			must(syscall(SYS_pivot_root, ".", ".") == 0 && umount2(".", MNT_DETACH) == 0, op);
		} else if (!strcmp(op, "bind")) {
			must(mount(a, argv[i + 2], 0, MS_BIND, 0) == 0, a), i += 2;
		} else if (!strcmp(op, "cd")) {
			must(chdir(a) == 0, a), i++;
		} else if (!strcmp(op, "open")) {
			int fd = open(a, O_RDONLY);
			must(fd >= 0, a), close(fd), i++;
		} else if (!strcmp(op, "openat")) { // DIR NAME
			int dir = open(a, O_PATH | O_DIRECTORY), fd = openat(dir, argv[i + 2], O_RDONLY);
			must(fd >= 0, a), close(fd), close(dir), i += 2;
		} else if (!strcmp(op, "opath")) {
			int fd = open(a, O_PATH);
			must(fd >= 0, a), close(fd), i++;
		} else if (!strcmp(op, "stat")) {
			must(stat(a, &st) == 0, a), i++;
		} else if (!strcmp(op, "lack")) {
			must(stat(a, &st) != 0 && errno == ENOENT, a), i++;
		} else if (!strcmp(op, "create")) {
			int fd = open(a, O_CREAT | O_WRONLY, 0644);
			must(fd >= 0, a), close(fd), i++;
		} else if (!strcmp(op, "chmod")) {
			must(chmod(a, 0700) == 0, a), i++;
		} else if (!strcmp(op, "unlink")) {
			must(unlink(a) == 0, a), i++;
		} else if (!strcmp(op, "deep")) { // N directories down from here
			for (int n = 0; n < atoi(a); n++) must(mkdir("d", 0755) == 0 && chdir("d") == 0, op);
			must(stat("none", &st) == -1, op), i++;
		} else if (!strcmp(op, "mkdirfails")) {
			must(mkdir(a, 0755) == -1 && errno == EEXIST, a), i++;
		} else if (!strcmp(op, "maps")) { // maps a file for execution
			int fd = open(a, O_RDONLY);
			must(mmap(0, 4096, PROT_READ | PROT_EXEC, MAP_PRIVATE, fd, 0) != MAP_FAILED, a);
			close(fd), i++;
		} else if (!strcmp(op, "listens")) { // on a port of 127.0.0.1
			struct sockaddr_in in = { .sin_family = AF_INET, .sin_port = htons(atoi(a)) };
			in.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
			int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), one = 1;
			must(setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one) == 0, op);
			must(bind(fd, (void *)&in, sizeof in) == 0 && listen(fd, 1) == 0, a);
			int to = socket(AF_INET, SOCK_STREAM, 0);
			must(connect(to, (void *)&in, sizeof in) == 0, a), close(to), close(fd), i++;
		} else if (!strcmp(op, "listensuring")) { // on a port of 127.0.0.1, by operations of io_uring
			struct sockaddr_in in = { .sin_family = AF_INET, .sin_port = htons(atoi(a)) };
			in.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
			int fd = socket(AF_INET, SOCK_STREAM, 0), listens = 57; // IORING_OP_BIND, IORING_OP_LISTEN: Linux 6.11
			struct io_uring_sqe sqe = { .opcode = listens - 1, .fd = fd, .addr = (uintptr_t)&in };
			sqe.addr2 = sizeof in;
			long bound = uring(sqe);
			if (bound != -EINVAL) {
				must(bound == 0, "bind");
				sqe = (struct io_uring_sqe){ .opcode = listens, .fd = fd, .len = 1 };
				must(uring(sqe) == 0, "listen");
			}
			close(fd), i++;
		} else if (!strcmp(op, "ioctls")) { // N different ones
			for (int n = 0; n < atoi(a); n++) ioctl(0, 0x777000 + n, 0);
			i++;
		} else if (!strcmp(op, "chowns")) {
			must(chown(a, 1, 1) == 0, a), i++;
		} else if (!strcmp(op, "renamed")) { // DIR NEW NAME: looks at NAME in DIR after its renaming
			int dir = open(a, O_PATH | O_DIRECTORY);
			must(rename(a, argv[i + 2]) == 0, a);
			must(fstatat(dir, argv[i + 3], &st, 0) == 0, argv[i + 3]), close(dir), i += 3;
		} else if (!strcmp(op, "bindsock")) {
			struct sockaddr_un un = { .sun_family = AF_UNIX };
			strcpy(un.sun_path, a);
			int fd = socket(AF_UNIX, SOCK_STREAM, 0);
			must(bind(fd, (void *)&un, sizeof un) == 0, a), close(fd), i++;
		} else if (!strcmp(op, "many")) { // DIR N: opens DIR/0 …
			for (int n = 0; n < atoi(argv[i + 2]); n++) {
				snprintf(buf, sizeof buf, "%s/%d", a, n);
				int fd = open(buf, O_CREAT | O_RDONLY, 0644);
				must(fd >= 0, buf), close(fd);
			}
			i += 2;
		} else if (!strcmp(op, "refuse")) {
			refuse_getppid();
		} else if (!strcmp(op, "call")) {
			syscall(atol(a)), i++;
		} else if (!strcmp(op, "compat")) { // getpid by the 32-bit table: 20
			compat(20, 0, 0);
		} else if (!strcmp(op, "exec32")) { // PATH by the 32-bit table
			static char path[64];
			static unsigned args[2];
			args[0] = (unsigned)(unsigned long)strcpy(path, a);
			compat(11, path, args);
			must(0, op);
		} else if (!strcmp(op, "exit32")) {
			compat(252, 0, 0);
		} else if (!strcmp(op, "execat")) { // PATH by its descriptor
			char *args[] = { a, 0 };
			syscall(SYS_execveat, open(a, O_PATH | O_CLOEXEC), "", args, environ, AT_EMPTY_PATH);
			must(0, op);
		} else if (!strcmp(op, "wait")) { // in a call that nothing else makes here
			struct timespec t = { 0, 1000000 * atoi(a) };
			syscall(SYS_ppoll, 0, 0, &t, 0, 0), i++;
		} else if (!strcmp(op, "rename")) {
			must(rename(a, argv[i + 2]) == 0, a), i += 2;
		} else if (!strcmp(op, "judge")) {
			judge();
		} else if (!strcmp(op, "filters")) { // FROM TO
			filters(a, argv[i + 2]), i += 2;
		} else if (!strcmp(op, "sleep")) {
			usleep(1000 * atoi(a)), i++;
		} else if (!strcmp(op, "fork")) { // the rest runs in a child and then here
			if (fork()) { int s; wait(&s); must(s == 0, "child"); }
		} else if (!strcmp(op, "child")) { // N words run in a child only
			int n = atoi(a), s;
			if (fork()) { wait(&s); must(s == 0, "child"); i += n + 1; }
			else { argc = i + n + 2; argv[argc] = 0; i++; }
		} else if (!strcmp(op, "again")) { // PATH N
			for (int n = 0; n < atoi(argv[i + 2]); n++) {
				int fd = open(a, O_RDONLY);
				must(fd >= 0, a), close(fd);
			}
			i += 2;
		} else if (!strcmp(op, "bench")) { // WHAT N: prints what one costs in ns
			bench(a, atoi(argv[i + 2])), i += 2;
		} else if (!strcmp(op, "threadexec")) { // exec, by a thread that is not the leader
			pthread_t thread;
			thread_argv = argv + i + 1;
			must(pthread_create(&thread, 0, exec_in_thread, 0) == 0, op);
			pause();
		} else if (!strcmp(op, "exec")) {
			execv(a, argv + i + 1);
			must(0, a);
		} else {
			errno = EINVAL, must(0, op);
		}
	}
	return 0;
}
