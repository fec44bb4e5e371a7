// Makes one access after the other, as its words say, each in a process of its own and by the bare
// system call, so that no C library adds another way to the same file. Built static.
//
//     access WORD PATH [PATH [PATH]] [-- WORD PATH [PATH [PATH]]] ...
//
// prints WORD and 0, or the errno that ended it; 38 (ENOSYS) is a kernel without the call.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/mount.h>
#include <linux/openat2.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>
#include "../support/uring.h"

// Younger than the headers of Debian 11.
#define NR_openat2 437
#define NR_faccessat2 439
#define NR_mount_setattr 442
#define OP_MKDIRAT 37
#define OP_SYMLINKAT 38
#define OP_LINKAT 39
#define OP_SETXATTR 42
#define OP_GETXATTR 44
// Fields of a submission that have no name there.
#define ADDR3(sqe) (((uint64_t *)&(sqe))[6])
#define ADDR_LEN(sqe) (((uint16_t *)&(sqe))[22])
// Younger than those of Debian 12.
#define NR_fchmodat2 452
#define NR_setxattrat 463
#define NR_getxattrat 464
#define NR_listxattrat 465
#define NR_removexattrat 466
#define NR_open_tree_attr 467
#define NR_file_getattr 468
#define NR_file_setattr 469
#define NR_OP_BIND 56

static char buf[8192];
static const uint64_t zeros[16];

static int ended(long result)
{
	return result < 0 ? errno : 0;
}

// The call's path was looked up, whatever came of it then.
static int looked_up(long result, int expected)
{
	return result < 0 && errno == expected ? 0 : ended(result);
}

static void must(long result)
{
	if (result < 0) _exit(errno);
}

// ---- sockets

static struct sockaddr_un name_of(const char *path)
{
	struct sockaddr_un un = { .sun_family = AF_UNIX };
	strncpy(un.sun_path, path, sizeof un.sun_path - 1);
	return un;
}

static int socket_call(const char *how, const char *path)
{
	struct sockaddr_un un = name_of(path);
	struct iovec part = { buf, 1 };
	struct mmsghdr m = { .msg_hdr = { &un, sizeof un, &part, 1 } };
	int datagram = *how == 's', fd = syscall(SYS_socket, AF_UNIX, datagram ? SOCK_DGRAM : SOCK_STREAM, 0);
	must(fd);
	if (!strcmp(how, "bind")) return ended(syscall(SYS_bind, fd, &un, sizeof un));
	// a plain file takes no connection: what counts is that it was looked up
	if (!strcmp(how, "connect")) return looked_up(syscall(SYS_connect, fd, &un, sizeof un), ECONNREFUSED);
	if (!strcmp(how, "sendto")) return looked_up(syscall(SYS_sendto, fd, buf, 1, 0, &un, sizeof un), ECONNREFUSED);
	if (!strcmp(how, "sendmsg")) return looked_up(syscall(SYS_sendmsg, fd, &m.msg_hdr, 0), ECONNREFUSED);
	return looked_up(syscall(SYS_sendmmsg, fd, &m, 1, 0), ECONNREFUSED);
}

// ---- io_uring

static long by_uring(struct io_uring_sqe what)
{
	long result = uring(what);
	errno = result < 0 ? -result : 0;
	return result < 0 ? -1 : result;
}

static int uring_call(const char *how, const char *a, const char *b)
{
	struct sockaddr_un un = name_of(a);
	struct iovec part = { buf, 1 };
	struct msghdr message = { &un, sizeof un, &part, 1 };
	struct open_how plain = { .flags = O_RDONLY };
	struct io_uring_sqe sqe = { .fd = AT_FDCWD, .addr = (uintptr_t)a };
	if (!strcmp(how, "open")) {
		sqe.opcode = IORING_OP_OPENAT;
	} else if (!strcmp(how, "openlater")) { // by a worker of the kernel's
		sqe.opcode = IORING_OP_OPENAT;
		sqe.flags = IOSQE_ASYNC;
	} else if (!strcmp(how, "openat2")) {
		sqe.opcode = IORING_OP_OPENAT2;
		sqe.len = sizeof plain;
		sqe.off = (uintptr_t)&plain;
	} else if (!strcmp(how, "statx")) {
		sqe.opcode = IORING_OP_STATX;
		sqe.len = STATX_BASIC_STATS;
		sqe.off = (uintptr_t)buf;
	} else if (!strcmp(how, "unlink")) {
		sqe.opcode = IORING_OP_UNLINKAT;
	} else if (!strcmp(how, "rename") || !strcmp(how, "link")) {
		sqe.opcode = *how == 'r' ? IORING_OP_RENAMEAT : OP_LINKAT;
		sqe.len = (unsigned)AT_FDCWD;
		sqe.off = (uintptr_t)b;
	} else if (!strcmp(how, "getxattr")) {
		sqe.opcode = OP_GETXATTR;
		sqe.addr = (uintptr_t)"user.none";
		sqe.addr2 = (uintptr_t)buf;
		ADDR3(sqe) = (uintptr_t)a;
		sqe.len = 16;
		return looked_up(by_uring(sqe), ENODATA);
	} else if (!strcmp(how, "setxattr")) {
		sqe.opcode = OP_SETXATTR;
		sqe.addr = (uintptr_t)"trusted.x";
		sqe.addr2 = (uintptr_t)"x";
		ADDR3(sqe) = (uintptr_t)a;
		sqe.len = 1;
	} else if (!strcmp(how, "mkdir")) {
		sqe.opcode = OP_MKDIRAT;
		sqe.len = 0755;
	} else if (!strcmp(how, "symlink")) {
		sqe.opcode = OP_SYMLINKAT;
		sqe.addr = (uintptr_t)"nowhere";
		sqe.addr2 = (uintptr_t)a;
	} else if (!strcmp(how, "bind")) {
		sqe.opcode = NR_OP_BIND;
		sqe.fd = syscall(SYS_socket, AF_UNIX, SOCK_STREAM, 0);
		sqe.addr = (uintptr_t)&un;
		sqe.addr2 = sizeof un;
	} else if (!strcmp(how, "send")) {
		sqe.opcode = IORING_OP_SEND;
		sqe.fd = syscall(SYS_socket, AF_UNIX, SOCK_DGRAM, 0);
		sqe.addr = (uintptr_t)buf;
		sqe.len = 1;
		sqe.addr2 = (uintptr_t)&un;
		ADDR_LEN(sqe) = sizeof un;
		// a kernel that takes no address here says so in another way
		return looked_up(by_uring(sqe), ECONNREFUSED);
	} else if (!strcmp(how, "sendmsg")) {
		sqe.opcode = IORING_OP_SENDMSG;
		sqe.fd = syscall(SYS_socket, AF_UNIX, SOCK_DGRAM, 0);
		sqe.addr = (uintptr_t)&message;
		sqe.len = 1;
		return looked_up(by_uring(sqe), ECONNREFUSED);
	} else if (!strcmp(how, "connect")) {
		sqe.opcode = IORING_OP_CONNECT;
		sqe.fd = syscall(SYS_socket, AF_UNIX, SOCK_STREAM, 0);
		sqe.addr = (uintptr_t)&un;
		sqe.off = sizeof un;
		return looked_up(by_uring(sqe), ECONNREFUSED);
	} else {
		return EINVAL;
	}
	return ended(by_uring(sqe));
}

// ---- 32-bit calls of a 64-bit program

static long int80(long number, long b, long c, long d)
{
	long result;
	__asm__ volatile("int $0x80" : "=a"(result) : "a"(number), "b"(b), "c"(c), "d"(d)
			 : "memory", "r8", "r9", "r10", "r11");
	errno = (int)result < 0 ? -(int)result : 0;
	return (int)result;
}

static int compat(const char *how, const char *path)
{
	char *low = mmap(0, 65536, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);
	strcpy(low, path);
	if (!strcmp(how, "open")) return ended(int80(5, (long)low, O_RDONLY, 0));
	if (!strcmp(how, "stat")) return ended(int80(195, (long)low, (long)low + 8192, 0)); // stat64
	return ended(int80(15, (long)low, 0600, 0)); // chmod
}

// ---- what takes more than one call

static int execute(const char *how, const char *path)
{
	char *argv[] = { (char *)path, "nothing", 0 }, *none[] = { 0 }, *slash = strrchr(path, '/');
	int fd;
	if (!strcmp(how, "plain")) return ended(syscall(SYS_execve, path, argv, none));
	if (!strcmp(how, "below")) { // a directory's descriptor and a name
		snprintf(buf, sizeof buf, "%.*s", (int)(slash - path), path);
		must(fd = syscall(SYS_open, buf, O_PATH | O_DIRECTORY));
		return ended(syscall(SYS_execveat, fd, slash + 1, argv, none, 0));
	}
	must(fd = syscall(SYS_open, path, !strcmp(how, "opath") ? O_PATH : O_RDONLY));
	if (strcmp(how, "proc")) return ended(syscall(SYS_execveat, fd, "", argv, none, AT_EMPTY_PATH));
	snprintf(buf, sizeof buf, "/proc/self/fd/%d", fd);
	return ended(syscall(SYS_execve, buf, argv, none));
}

static int library(const char *path)
{
	int fd = syscall(SYS_openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC);
	must(fd);
	return mmap(0, 4096, PROT_READ | PROT_EXEC, MAP_PRIVATE, fd, 0) == MAP_FAILED ? errno : 0;
}

static void own_mounts(void)
{
	must(syscall(SYS_unshare, CLONE_NEWNS));
	must(syscall(SYS_mount, 0, "/", 0, MS_REC | MS_PRIVATE, 0));
}

static const char *below(const char *dir, const char *name)
{
	snprintf(buf, sizeof buf, "%s/%s", dir, name);
	return buf;
}

static int dies_at_once(int (*what)(const char *), const char *path)
{
	pid_t pid = fork();
	int status;
	if (!pid) _exit(what(path));
	must(waitpid(pid, &status, 0));
	return WEXITSTATUS(status);
}

static int opened(const char *path)
{
	return ended(syscall(SYS_open, path, O_RDONLY));
}

static int stated(const char *path)
{
	return ended(syscall(SYS_stat, path, buf + 4096));
}

// Directory by directory, for names that are too long to be used at once.
static int walk_down(const char *path)
{
	static char copy[16384];
	char *name, *rest = copy, *last = strrchr(strcpy(copy, path), '/');
	*last = 0;
	must(chdir("/"));
	while ((name = strsep(&rest, "/")))
		if (*name) must(syscall(SYS_chdir, name));
	return opened(last + 1);
}

#define OP(word, result) if (!strcmp(op, word)) return (result)

static int change(const char *op, const char *a, const char *b)
{
	OP("chmod", ended(syscall(SYS_chmod, a, 0600)));
	OP("fchmodat", ended(syscall(SYS_fchmodat, AT_FDCWD, a, 0600)));
	OP("fchmodat2", ended(syscall(NR_fchmodat2, AT_FDCWD, a, 0600, 0)));
	OP("chown", ended(syscall(SYS_chown, a, 1, 1)));
	OP("lchown", ended(syscall(SYS_lchown, a, 1, 1)));
	OP("fchownat", ended(syscall(SYS_fchownat, AT_FDCWD, a, 1, 1, 0)));
	OP("utime", ended(syscall(SYS_utime, a, 0)));
	OP("utimes", ended(syscall(SYS_utimes, a, 0)));
	OP("futimesat", ended(syscall(SYS_futimesat, AT_FDCWD, a, 0)));
	OP("utimensat", ended(syscall(SYS_utimensat, AT_FDCWD, a, 0, 0)));
	OP("truncate", ended(syscall(SYS_truncate, a, 1)));
	OP("rename", ended(syscall(SYS_rename, a, b)));
	OP("renameat", ended(syscall(SYS_renameat, AT_FDCWD, a, AT_FDCWD, b)));
	OP("renameat2", ended(syscall(SYS_renameat2, AT_FDCWD, a, AT_FDCWD, b, 0)));
	OP("unlink", ended(syscall(SYS_unlink, a)));
	OP("unlinkat", ended(syscall(SYS_unlinkat, AT_FDCWD, a, 0)));
	OP("rmdir", looked_up(syscall(SYS_rmdir, a), ENOTEMPTY));
	OP("mkdir", ended(syscall(SYS_mkdir, a, 0755)));
	OP("mkdirat", ended(syscall(SYS_mkdirat, AT_FDCWD, a, 0755)));
	OP("mknod", ended(syscall(SYS_mknod, a, S_IFIFO | 0600, 0)));
	OP("mknodat", ended(syscall(SYS_mknodat, AT_FDCWD, a, S_IFIFO | 0600, 0)));
	OP("link", ended(syscall(SYS_link, a, b)));
	OP("linkat", ended(syscall(SYS_linkat, AT_FDCWD, a, AT_FDCWD, b, 0)));
	OP("symlink", ended(syscall(SYS_symlink, "nowhere", a)));
	OP("symlinkat", ended(syscall(SYS_symlinkat, "nowhere", AT_FDCWD, a)));
	OP("setxattr", ended(syscall(SYS_setxattr, a, "trusted.x", "x", 1, 0)));
	OP("lsetxattr", ended(syscall(SYS_lsetxattr, a, "trusted.x", "x", 1, 0)));
	OP("removexattr", looked_up(syscall(SYS_removexattr, a, "trusted.x"), ENODATA));
	OP("lremovexattr", looked_up(syscall(SYS_lremovexattr, a, "trusted.x"), ENODATA));
	OP("setxattrat", ended(syscall(NR_setxattrat, AT_FDCWD, a, 0, "trusted.x", &(uint64_t[]){ (uintptr_t)"x", 1 }, 16)));
	OP("removexattrat", looked_up(syscall(NR_removexattrat, AT_FDCWD, a, 0, "trusted.x"), ENODATA));
	OP("file_setattr", looked_up(syscall(NR_file_setattr, AT_FDCWD, a, zeros, 24, 0), EOPNOTSUPP));
	return -1;
}

static int look(const char *op, const char *a)
{
	struct file_handle *handle = (void *)buf;
	int fd;
	OP("stat", stated(a));
	OP("lstat", ended(syscall(SYS_lstat, a, buf)));
	OP("newfstatat", ended(syscall(SYS_newfstatat, AT_FDCWD, a, buf, 0)));
	OP("statx", ended(syscall(SYS_statx, AT_FDCWD, a, 0, STATX_BASIC_STATS, buf)));
	OP("access", ended(syscall(SYS_access, a, R_OK)));
	OP("faccessat", ended(syscall(SYS_faccessat, AT_FDCWD, a, R_OK)));
	OP("faccessat2", ended(syscall(NR_faccessat2, AT_FDCWD, a, R_OK, AT_EACCESS)));
	OP("readlink", ended(syscall(SYS_readlink, a, buf, 100)));
	OP("readlinkat", ended(syscall(SYS_readlinkat, AT_FDCWD, a, buf, 100)));
	OP("chdir", ended(syscall(SYS_chdir, a)));
	OP("chroot", ended(syscall(SYS_chroot, a)));
	OP("statfs", ended(syscall(SYS_statfs, a, buf)));
	OP("getxattr", looked_up(syscall(SYS_getxattr, a, "trusted.none", buf, 9), ENODATA));
	OP("lgetxattr", looked_up(syscall(SYS_lgetxattr, a, "trusted.none", buf, 9), ENODATA));
	OP("listxattr", ended(syscall(SYS_listxattr, a, buf, 900)));
	OP("llistxattr", ended(syscall(SYS_llistxattr, a, buf, 900)));
	OP("getxattrat", looked_up(syscall(NR_getxattrat, AT_FDCWD, a, 0, "trusted.none", &(uint64_t[]){ (uintptr_t)buf, 9 }, 16), ENODATA));
	OP("listxattrat", ended(syscall(NR_listxattrat, AT_FDCWD, a, 0, buf, 900)));
	OP("file_getattr", looked_up(syscall(NR_file_getattr, AT_FDCWD, a, buf, 24, 0), EOPNOTSUPP));
	if (!strcmp(op, "inotify_add_watch")) {
		must(fd = syscall(SYS_inotify_init1, 0));
		return ended(syscall(SYS_inotify_add_watch, fd, a, IN_OPEN));
	}
	handle->handle_bytes = 128;
	OP("name_to_handle_at", looked_up(syscall(SYS_name_to_handle_at, AT_FDCWD, a, handle, &fd, 0), EOPNOTSUPP));
	OP("open_tree", ended(syscall(SYS_open_tree, AT_FDCWD, a, 0)));
	OP("open_tree_attr", ended(syscall(NR_open_tree_attr, AT_FDCWD, a, 0, 0, 0)));
	OP("fspick", looked_up(syscall(SYS_fspick, AT_FDCWD, a, 0), EINVAL)); // not a mount's root
	OP("mount_setattr", looked_up(syscall(NR_mount_setattr, AT_FDCWD, a, 0, &(uint64_t[4]){ 1 }, 32), EINVAL));
	OP("umount", looked_up(syscall(SYS_umount2, a, 0), EINVAL));
	OP("quotactl", looked_up(syscall(SYS_quotactl, 0x80000100 /* Q_SYNC */, a, 0, 0), ENOTBLK));
	OP("fanotify_mark", looked_up(syscall(SYS_fanotify_mark, syscall(SYS_fanotify_init, 0, 0), 1 /* ADD */, 0x20ULL /* OPEN */, AT_FDCWD, a), EINVAL));
	OP("swapoff", looked_up(syscall(SYS_swapoff, a), EINVAL));
	OP("swapon", looked_up(syscall(SYS_swapon, a, 0), EINVAL));
	return -1;
}

// Looks at "in" by a descriptor, makes that the descriptor of another folder and looks again.
static int another_folder(const char *how, int fd, const char *other)
{
	int *turn = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0), to;
	int shared = !strcmp(how, "shared");
	if (strcmp(how, "closed")) must(to = syscall(SYS_open, other, O_RDONLY | O_DIRECTORY));
	// a process that shares the descriptors, so that the one that looks makes no call in between
	if (shared && !syscall(SYS_clone, CLONE_FILES | SIGCHLD, 0, 0, 0, 0)) {
		while (!__atomic_load_n(turn, __ATOMIC_ACQUIRE)) ;
		syscall(SYS_dup2, to, fd);
		__atomic_store_n(turn, 2, __ATOMIC_RELEASE);
		_exit(0);
	}
	must(syscall(SYS_newfstatat, fd, "in", buf, 0));
	if (shared) {
		__atomic_store_n(turn, 1, __ATOMIC_RELEASE);
		while (__atomic_load_n(turn, __ATOMIC_ACQUIRE) != 2) ;
	} else if (!strcmp(how, "closed")) {
		must(syscall(SYS_close, fd));
		if (syscall(SYS_open, other, O_RDONLY | O_DIRECTORY) != fd) return EBADF;
	} else {
		must(syscall(SYS_dup2, to, fd));
	}
	return ended(syscall(SYS_newfstatat, fd, "in", buf, 0));
}

static int many(const char *op, const char *a, const char *b)
{
	int fd;
	OP("library", library(a));
	OP("dead", dies_at_once(opened, a));
	OP("dead-stat", dies_at_once(stated, a));
	OP("walk-down", walk_down(a));
	if (!strcmp(op, "at")) { // directory, name
		must(fd = syscall(SYS_open, a, O_PATH | O_DIRECTORY));
		return ended(syscall(SYS_openat, fd, b, O_RDONLY));
	}
	if (!strcmp(op, "chdir-relative")) {
		const char *slash = strrchr(a, '/');
		snprintf(buf, sizeof buf, "%.*s", (int)(slash - a), a);
		must(syscall(SYS_chdir, buf));
		return ended(syscall(SYS_chdir, slash + 1));
	}
	if (!strcmp(op, "list")) {
		must(fd = syscall(SYS_open, a, O_RDONLY | O_DIRECTORY));
		return ended(syscall(SYS_getdents64, fd, buf, sizeof buf));
	}
	if (!strcmp(op, "unshare")) {
		own_mounts();
		return opened(a);
	}
	if (!strcmp(op, "chrooted") || !strcmp(op, "chrooted-stat")) { // root, name in it
		must(syscall(SYS_chroot, a));
		must(syscall(SYS_chdir, "/"));
		return op[8] ? stated(b) : opened(b);
	}
	if (!strncmp(op, "bind", 4)) { // directory with a file "in", mount point
		own_mounts();
		must(syscall(SYS_mount, a, b, 0, MS_BIND, 0));
		OP("bind-open", opened(below(b, "in")));
		OP("bind-stat", stated(below(b, "in")));
		return 0;
	}
	if (!strcmp(op, "move_mount")) { // the same by the newer calls
		own_mounts();
		must(fd = syscall(SYS_open_tree, AT_FDCWD, a, 1 /* OPEN_TREE_CLONE */));
		must(syscall(SYS_move_mount, fd, "", AT_FDCWD, b, 4 /* MOVE_MOUNT_F_EMPTY_PATH */));
		return stated(below(b, "in"));
	}
	if (!strncmp(op, "other-", 6)) { // two folders, each with a file "in"
		must(fd = syscall(SYS_open, a, O_RDONLY | O_DIRECTORY));
		return another_folder(op + 6, fd, b);
	}
	if (!strcmp(op, "renamed")) { // from, to: opened by its new name
		must(syscall(SYS_rename, a, b));
		return opened(b);
	}
	if (!strcmp(op, "folder-renamed")) { // folder with a file "in", to: opened by a relative name
		must(syscall(SYS_chdir, a));
		must(syscall(SYS_rename, a, b));
		return opened("in");
	}
	return -1;
}

static int one(const char *op, char **words)
{
	char *a = words[0], *b = words[1];
	struct open_how how = { .flags = O_RDONLY };
	int result;
	OP("open", opened(a));
	OP("openat", ended(syscall(SYS_openat, AT_FDCWD, a, O_RDONLY)));
	OP("openat2", ended(syscall(NR_openat2, AT_FDCWD, a, &how, sizeof how)));
	OP("creat", ended(syscall(SYS_creat, a, 0644)));
	OP("write", ended(syscall(SYS_open, a, O_WRONLY | O_CREAT, 0644)));
	OP("opath", ended(syscall(SYS_open, a, O_PATH)));
	OP("exec-args", ended(syscall(SYS_execve, a, words, 0)));
	if (!strncmp(op, "exec-", 5)) return execute(op + 5, a);
	if (!strncmp(op, "socket-", 7)) return socket_call(op + 7, a);
	if (!strncmp(op, "uring-", 6)) return uring_call(op + 6, a, b);
	if (!strncmp(op, "compat-", 7)) return compat(op + 7, a);
	if ((result = look(op, a)) >= 0) return result;
	if ((result = change(op, a, b)) >= 0) return result;
	if ((result = many(op, a, b)) >= 0) return result;
	return EINVAL;
}

// %XX is a byte.
static char *decoded(char *word)
{
	char *from = word, *to = word;
	unsigned byte;
	while (*from) {
		if (*from == '%' && sscanf(from + 1, "%2x", &byte) == 1) *to++ = byte, from += 3;
		else *to++ = *from++;
	}
	*to = 0;
	return word;
}

int main(int argc, char **argv)
{
	for (int i = 1; i < argc; i++) { // one past the "--"
		char *op = argv[i], *rest[4] = { "", "", "", 0 };
		for (int n = 0; i + 1 < argc && strcmp(argv[++i], "--") && n < 3; n++) rest[n] = decoded(argv[i]);
		if (!strcmp(op, "nothing")) return 0;
		if (!strcmp(op, "sleep")) { // milliseconds, once told
			puts("ready");
			fflush(stdout);
			usleep(1000 * atoi(rest[0]));
			continue;
		}
		pid_t pid = fork();
		int status;
		if (!pid) _exit(one(op, rest));
		waitpid(pid, &status, 0);
		printf("%s %d\n", op, WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status));
		fflush(stdout);
	}
	return 0;
}
