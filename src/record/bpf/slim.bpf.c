// SPDX-License-Identifier: GPL-2.0
//
// The kernel side of slim's BPF recorder. It sees every task below one cgroup and reports, each only
// once: the calls made, refused and failed, their arguments of interest, the paths and addresses
// handed to calls, capabilities used. Forks, execs and exits are all reported, because the reader
// names the users of files by them.
//
// Who is recorded is learnt when it changes (a fork, a task moved between cgroups), not at each
// call: `tasks` holds a number for each process id of the machine, and a bystander leaves after one
// helper and one array lookup. A recorded task's steady state is two more array lookups at the end of
// a call, without atomics and without writing anything that another processor reads. The begin of a call
// is not looked at, see slim_exit.
//
// Kernel types are cut down to the fields in use; CO-RE finds their offsets when the object is
// loaded. Needs Linux 5.17 (bpf_loop, bpf_find_vma) with BTF, neither BPF LSM nor trampolines.

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>

typedef __u8 u8;
typedef __u16 u16;
typedef __u32 u32;
typedef __u64 u64;
typedef __s32 s32;
typedef __s64 s64;

#define CORE __attribute__((preserve_access_index))

// hash and len apart: before Linux 6.12 or so the verifier knows the union's first member only
struct qstr { u32 hash, len; const unsigned char *name; } CORE;
struct super_block { u32 s_dev; } CORE;
struct inode { unsigned short i_mode; } CORE;
struct dentry {
	struct dentry *d_parent;
	struct qstr d_name;
	struct super_block *d_sb;
} CORE;
struct vfsmount { struct dentry *mnt_root; struct super_block *mnt_sb; } CORE;
struct list_head { struct list_head *next; } CORE;
struct rb_node { unsigned long __rb_parent_color; struct rb_node *rb_right, *rb_left; } CORE;
struct rb_root { struct rb_node *rb_node; } CORE;
struct mount {
	struct mount *mnt_parent;
	struct dentry *mnt_mountpoint;
	struct vfsmount mnt;
	struct list_head mnt_list;
	int mnt_id;
} CORE;
struct mount___tree { struct rb_node mnt_node; } CORE; // Linux 6.8
struct path { struct vfsmount *mnt; struct dentry *dentry; } CORE;
struct fs_struct { struct path root, pwd; } CORE;
struct file { struct path f_path; struct inode *f_inode; void *private_data; } CORE;
struct backing_file { struct file file; struct path user_path; } CORE; // Linux 6.5
struct fdtable { unsigned int max_fds; struct file **fd; } CORE;
struct files_struct { struct { int counter; } count; struct fdtable *fdt; } CORE;
struct mm_struct { unsigned long arg_start; struct file *exe_file; } CORE;
struct vm_area_struct { struct file *vm_file; } CORE;
struct ns_common { unsigned int inum; } CORE;
struct pid_namespace { struct ns_common ns; } CORE;
struct upid { int nr; struct pid_namespace *ns; } CORE;
struct pid { unsigned int level; struct upid numbers[1]; } CORE;
struct mnt_namespace { struct ns_common ns; u64 event; struct mount *root; struct list_head list; } CORE;
struct mnt_namespace___tree { struct rb_root mounts; } CORE; // Linux 6.8; a count before
struct nsproxy { struct mnt_namespace *mnt_ns; } CORE;
struct signal_struct { struct { int counter; } live; struct list_head thread_head; } CORE;
struct thread_info { u32 status; } CORE;
struct cred { struct { u32 val; } uid; } CORE;
struct sigaction { void *sa_handler; unsigned long sa_flags; } CORE;
struct k_sigaction { struct sigaction sa; } CORE;
struct sock_fprog_kern { u16 len; void *filter; } CORE;
struct bpf_prog { struct sock_fprog_kern *orig_prog; } CORE;
struct action_cache { unsigned long allow_native[1], allow_compat[1]; } CORE;
struct seccomp_filter { struct action_cache cache; struct seccomp_filter *prev; struct bpf_prog *prog; } CORE;
struct seccomp { struct seccomp_filter *filter; } CORE;
struct kernfs_node { u64 id; } CORE;
struct cgroup;
struct cgroup_subsys_state { struct cgroup *cgroup; struct cgroup_subsys_state *parent; } CORE;
struct cgroup { struct cgroup_subsys_state self; struct kernfs_node *kn; } CORE;
struct css_set { struct cgroup *dfl_cgrp; } CORE;
struct task_struct {
	struct thread_info thread_info;
	int pid, tgid;
	struct task_struct *group_leader, *real_parent;
	struct pid *thread_pid;
	struct fs_struct *fs;
	struct files_struct *files;
	struct mm_struct *mm;
	struct nsproxy *nsproxy;
	struct signal_struct *signal;
	struct list_head thread_node;
	struct css_set *cgroups;
	const struct cred *real_cred;
	struct seccomp seccomp;
	unsigned int __state, ptrace;
	int exit_code;
} CORE;
struct bpf_iter__task { void *meta; struct task_struct *task; } CORE;
struct linux_binprm { const char *filename; const char *interp; } CORE;
struct pt_regs { unsigned long bx, bp, r10, r9, r8, cx, dx, si, di, orig_ax, ip; } CORE;
struct io_cqe { int fd; } CORE;
struct io_kiocb { u8 opcode; u32 flags; struct io_cqe cqe; void *async_data; } CORE;
struct filename { const char *name; } CORE;
struct io_open { int dfd; struct filename *filename; struct { u64 flags; } how; } CORE;
struct io_statx { int dfd; unsigned int flags; struct filename *filename; } CORE;
struct io_unlink { int dfd; int flags; struct filename *filename; } CORE;
struct io_rename { int old_dfd, new_dfd; struct filename *oldpath, *newpath; } CORE;
struct io_link { int old_dfd, new_dfd; struct filename *oldpath, *newpath; int flags; } CORE;
struct io_mkdir { int dfd; struct filename *filename; } CORE;
struct io_xattr { struct filename *filename; } CORE;
struct io_connect { void *addr; int addr_len; } CORE;
struct io_bind { int addr_len; } CORE; // Linux 6.11
struct io_sr_msg { void *umsg; } CORE;
struct io_sr_msg___addr { void *addr; int addr_len; } CORE; // Linux 6.0 to 6.12
struct msghdr { void *msg_name; int msg_namelen; } CORE;
struct io_async_msghdr { struct msghdr msg; struct { u16 family; } addr; } CORE;
struct in6_addr { u8 bytes[16]; };
struct sock_common {
	u32 skc_rcv_saddr;
	u16 skc_num, skc_family;
	struct in6_addr skc_v6_rcv_saddr;
} CORE;
struct sock { struct sock_common __sk_common; u16 sk_protocol; } CORE;
struct socket { short type; struct sock *sk; } CORE;

#define TS_COMPAT 2
#define AT_FDCWD (-100)
#define CALLS 1024
#define CLASSES 4
#define PROT_EXEC 4
#define MAP_ANONYMOUS 0x20
#define MAIN 100         // role: the main container, in the current phase
#define UNRECORDED 101   // role: seen, never counted; other roles are phase numbers
#define RUN 4            // phase, and role: a fresh container
#define HOOK 8           // phase, and role: what an OCI hook does in the container before the entrypoint
#define HOST_HOOK 9      // the same of a hook that runs outside of it
#define HOOK_MARK 0x6b6f6f686d696c73ULL // "slimhook", what slim's own start of such a hook is called

// ---- what the reader sets -------------------------------------------------------------------

struct config {
	u64 cgroup;      // id of the recorded cgroup
	u32 phase;       // of the main container
	u32 pid_ns;      // inode number of the reader's pid namespace
	u32 both;        // calls are seen when they begin, too: that tells the refused ones
	u32 wake;        // bytes of events after which the reader is woken, a power of two
};
struct { __uint(type, BPF_MAP_TYPE_ARRAY); __uint(max_entries, 1); __type(key, u32); __type(value, struct config); } config SEC(".maps");
// cgroup id → role; each exec has a leaf of its own, and an hour has many. Adding to a full one is an error.
struct { __uint(type, BPF_MAP_TYPE_HASH); __uint(max_entries, 65536); __type(key, u64); __type(value, u32); } roles SEC(".maps");
// super block device → 1, for the overlays watched
struct { __uint(type, BPF_MAP_TYPE_HASH); __uint(max_entries, 16384); __type(key, u32); __type(value, u32); } overlays SEC(".maps");
// slim's own helpers outside the cgroup, by process id in the reader's namespace
struct { __uint(type, BPF_MAP_TYPE_HASH); __uint(max_entries, 16384); __type(key, u32); __type(value, u32); } hosts SEC(".maps");

// What is known about a call.
struct call {
	u8 path[2];      // 1 + index of a path argument; 0 none
	u8 dir[2];       // 1 + index of its directory descriptor; 0: the working directory
	u8 flags;        // 1 + index of the argument that tells what the call does with the path
	u8 args;         // arguments worth recording with the call: enum args
	u8 what;         // more to do when it ends: enum what
	u8 traits;
};
#define BY_POINTER 0x80  // in `flags`: the argument points to them
#define KEEPS 1          // leaves every descriptor and every folder's name as it is
#define RENAMES 2        // gives folders other names
#define STANDS 4         // moves the task, or gives it another place to stand in
#define ENDS 8           // does not return
#define FILTERS 16       // may load a seccomp filter
#define EXECUTES 32
// up to 6: 1 + index of the one argument
enum args { SOCKET = 7, SOCKOPT, EXECUTABLE };
enum what { ADDR_1 = 1, ADDR_4, MESSAGE, MESSAGES, LISTEN, SOCKETCALL, MAPPING, CLONE3, MOUNTS, MOVES, PIVOT };

// By (architecture, class, number): the call, and what was reported of it.
struct slot {
	u32 called, values;
	struct call call;
	u64 refused[3], failed[3]; // by errno
	// What a task's filters say to the call by its number alone
	u64 filter;      // the task's latest filter
	u32 filters;     // `filters` of the state, then
	u32 verdict;     // SECCOMP_RET_*; 0 not known
	u64 pad[6];
};
struct { __uint(type, BPF_MAP_TYPE_ARRAY); __uint(max_entries, 2 * CLASSES * CALLS); __type(key, u32); __type(value, struct slot); } slots SEC(".maps");

// ---- what this side keeps -------------------------------------------------------------------

// Process id of the machine → 1 + index in `threads`. As many as the machine's pid_max.
struct { __uint(type, BPF_MAP_TYPE_ARRAY); __uint(max_entries, 32768); __type(key, u32); __type(value, u32); } tasks SEC(".maps");

#define ELSEWHERE 0xffffffff // the call began before the thread was recorded: unlike a refused one
// A cache line each, so that two of them never share one.
struct thread {
	u32 tgid;        // in the reader's namespace
	u32 role;
	u32 entered;     // runs what the image holds, executed with an overlay as its root; or is a hook
	u32 call;        // 1 + number | arch << 31 of the call it is in, where that is known; or ELSEWHERE
	u64 root, pwd;   // names of where it stood before a call that moves it
	u64 mounts;      // key of the mounts that the reader knows it to see
	// The folder that its last call started from, while it makes but calls that leave it so (KEEPS)
	u64 folder;      // key
	u32 folder_fd;   // 1 + descriptor; 0: not known
	u32 renames;     // `renames` of the state, then
	u32 frames;      // how its signal handlers return: enum frames
	u32 back;        // a call that ends its caller was refused
};
struct { __uint(type, BPF_MAP_TYPE_ARRAY); __uint(max_entries, 65536); __type(key, u32); __type(value, struct thread); } threads SEC(".maps");
struct { __uint(type, BPF_MAP_TYPE_STACK); __uint(max_entries, 65536); __uint(value_size, 4); } unused SEC(".maps");

// Hashes of what was reported: lines of eight. A full line forgets, which only means a second report.
#define LINES 32768
struct line { u64 key[8]; };
struct { __uint(type, BPF_MAP_TYPE_ARRAY); __uint(max_entries, LINES); __type(key, u32); __type(value, struct line); } seen SEC(".maps");

struct state {
	u32 threads;     // indexes of `threads` handed out so far
	u32 level;       // 1 + level of the reader's pid namespace; 0 not known yet
	u32 woken;       // the reader was told of the first exec
	u32 size;        // entries of `threads`
	u64 capable[CLASSES]; // capabilities reported
	u32 renames;     // calls that gave a folder another name
	u32 filters;     // seccomp filters loaded, and tasks that came with theirs
	u64 pivots;      // calls that gave others a root, too
};
struct { __uint(type, BPF_MAP_TYPE_ARRAY); __uint(max_entries, 1); __type(key, u32); __type(value, struct state); } state SEC(".maps");

enum loss { RING_FULL, MAP_FULL, STRING_FAULT, STRING_CUT, LEFT_CGROUP, MOUNTS_UNKNOWN, LOSSES };
struct { __uint(type, BPF_MAP_TYPE_ARRAY); __uint(max_entries, LOSSES); __type(key, u32); __type(value, u64); } losses SEC(".maps");

struct { __uint(type, BPF_MAP_TYPE_RINGBUF); __uint(max_entries, 16 << 20); } ring SEC(".maps");

// ---- events ---------------------------------------------------------------------------------

enum kind {
	SIGHT = 1, FORK, EXEC, EXIT, CALL, REFUSED, VALUE, PATH, HOST,
	NAME, FAILED, MAP, ADDRESS, CAPABILITY, MOUNT, MOUNTED,
};

enum flags {
	ENTERED = 1,
	BASE_UNKNOWN = 4,
	ROOT_ON_OVERLAY = 8,
	EXE_ON_OVERLAY = 16,
	LAST_THREAD = 32,
	OTHERS = 64,             // a value stands for all that follow
	ON_OVERLAY = 128,        // of a name
};

struct head {
	u8 kind, arch, phase, role;
	u32 flags;
	u32 tgid;        // in the reader's namespace, as all process ids here
	u32 other;       // fork: the child; path: which of the call's paths; mount: the device
	u64 time;        // ns, CLOCK_MONOTONIC
	u32 uid;
	u32 number;
	s32 result;
	u32 mnt_ns;
	u64 value;
	u64 base, root, exe, loader; // names of directories and files, by their key; 0 none
	u16 lens[4];     // bytes of each piece of data
};

#define DATA 8192        // pieces start below this
struct out {
	struct head head;
	u8 data[2 * DATA];
};
struct { __uint(type, BPF_MAP_TYPE_PERCPU_ARRAY); __uint(max_entries, 1); __type(key, u32); __type(value, struct out); } scratch SEC(".maps");
// for names, which are sent while an event is being made
struct { __uint(type, BPF_MAP_TYPE_PERCPU_ARRAY); __uint(max_entries, 1); __type(key, u32); __type(value, struct out); } scratch2 SEC(".maps");

static __always_inline void lose(u32 kind)
{
	u64 *n = bpf_map_lookup_elem(&losses, &kind);
	if (n) __sync_fetch_and_add(n, 1);
}

#define ONLY(map) ({ u32 zero_ = 0; bpf_map_lookup_elem(&map, &zero_); })

static __always_inline struct task_struct *self(void)
{
	return (void *)bpf_get_current_task_btf();
}

static __always_inline struct thread *thread_of(u32 pid)
{
	u32 *index = bpf_map_lookup_elem(&tasks, &pid), at;
	if (!index || !*index) return 0;
	at = *index - 1;
	return bpf_map_lookup_elem(&threads, &at);
}

// The fewer helpers the better, here above all: each costs as much as all else that a call does here,
// where returns are guarded against speculation.
static __always_inline struct thread *current_thread(void)
{
	return thread_of(self()->pid);
}

// What the reader keeps apart: the runtime's use, the container's, a hook's inside and outside.
static __always_inline u32 class_of(struct thread *t)
{
	if (!t->entered) return 0;
	return t->role == HOOK ? 2 : t->role == HOST_HOOK ? 3 : 1;
}

static __always_inline u32 phase_of(struct thread *t)
{
	struct config *c;
	if (!t->entered) return 0;
	if (t->role < MAIN) return t->role;
	c = ONLY(config);
	return c ? c->phase : 0;
}

static __always_inline void begin(struct out *o, u8 kind, struct thread *t)
{
	__builtin_memset(&o->head, 0, sizeof(o->head));
	o->head.kind = kind;
	o->head.time = bpf_ktime_get_ns();
	o->head.uid = (u32)bpf_get_current_uid_gid();
	o->head.tgid = t->tgid;
	o->head.role = t->role;
	o->head.phase = phase_of(t);
	o->head.flags = t->entered ? ENTERED : 0;
}

// Puts an event into the ring. The reader looks there on its own every now and then, and waking it
// costs more than the event: only a good part of a ring of news is worth that, or `wake`.
static __always_inline int put(struct out *o, u32 off, int wake)
{
	// a mask that cuts nothing, since pieces start below DATA and are shorter: older verifiers follow
	// it where they lose track of a comparison
	u32 bytes = sizeof(o->head) + (off & (sizeof(o->data) - 1));
	struct config *c = ONLY(config);
	u64 waiting = bpf_ringbuf_query(&ring, BPF_RB_AVAIL_DATA);
	u64 flags = BPF_RB_NO_WAKEUP;
	long rc;
	if (wake || (c && (waiting & (c->wake - 1)) < bytes + 8 && waiting >= c->wake)) flags = BPF_RB_FORCE_WAKEUP;
	rc = bpf_ringbuf_output(&ring, o, bytes, flags);
	if (rc) lose(RING_FULL);
	return rc == 0;
}

static __always_inline int send(struct out *o, u32 off)
{
	return put(o, off, 0);
}

// The process's id in the reader's pid namespace; 0 if it has none there. Takes an address, because a
// global function, at which the verifier looks once, may take no kernel pointer.
__noinline u32 reader_pid_at(u64 addr)
{
	struct task_struct *task = (void *)addr;
	struct config *c = ONLY(config);
	struct state *s = ONLY(state);
	struct pid *pid = BPF_CORE_READ(task, thread_pid);
	u32 level = BPF_CORE_READ(pid, level), from;
	u64 at = (u64)pid + bpf_core_field_offset(pid->numbers);
	if (!c || !s) return 0;
	from = s->level;
	if (from) at += (u64)(from - 1) * sizeof(struct upid);
	for (u32 i = 0; i < 32; i++) {
		struct upid number;
		if (from ? from - 1 > level : i > level) break;
		bpf_probe_read_kernel(&number, sizeof(number), (void *)at);
		if (BPF_CORE_READ(number.ns, ns.inum) == c->pid_ns) {
			if (!from) s->level = i + 1;
			return number.nr;
		}
		if (from) break;
		at += sizeof(number);
	}
	return 0;
}

static __always_inline u64 address_of(struct task_struct *task)
{
	u64 addr = 0;
	bpf_probe_read_kernel(&addr, sizeof(addr), &task->group_leader);
	return addr;
}

static __always_inline u32 reader_pid(struct task_struct *task)
{
	return reader_pid_at(address_of(task));
}

// ---- what was reported ----------------------------------------------------------------------

static __always_inline u64 mix(u64 h, u64 v)
{
	h = (h ^ v) * 0x9e3779b97f4a7c15ULL;
	return h ^ (h >> 29);
}

static __always_inline struct line *line_of(u64 key)
{
	u32 at = (key >> 40) & (LINES - 1);
	return bpf_map_lookup_elem(&seen, &at);
}

static __always_inline int known(u64 key)
{
	struct line *l = line_of(key);
	if (!l) return 0;
	u32 hit = 0;
#pragma unroll
	for (int i = 0; i < 8; i++) hit |= l->key[i] == key;
	return hit;
}

// After the event was sent, so that nobody relies on one that was not.
static __always_inline void remember(u64 key)
{
	struct line *l = line_of(key);
	if (!l) return;
#pragma unroll
	for (int i = 0; i < 8; i++)
		if (!l->key[i]) {
			l->key[i] = key;
			return;
		}
	l->key[(key >> 20) & 7] = key;
}

// The bytes in `data` up to `len`, whose last word is filled up with zeros.
__noinline u64 hash_data(u64 h, u32 len)
{
	struct out *o = ONLY(scratch);
	if (!o) return h;
	for (u32 i = 0; i < 512; i++) {
		if (i * 8 >= len) break;
		h = mix(h, *(u64 *)&o->data[i * 8]);
	}
	return mix(h, len);
}

// Fills the last word of a string up, for hash_data. The mask cuts nothing, but is not left to the compiler,
// which sees that: Linux 6.1 loses track of a length that was kept on the stack meanwhile.
static __always_inline void fill_up(struct out *o, u64 len)
{
	asm volatile("%0 &= 8191" : "+r"(len));
	*(u64 *)&o->data[len] = 0;
}

// ---- names ----------------------------------------------------------------------------------

static __always_inline int watched_device(u32 dev)
{
	return bpf_map_lookup_elem(&overlays, &dev) != 0;
}

// Of a super block that is known by its address only.
static __always_inline int watched(struct super_block *sb)
{
	return watched_device(BPF_CORE_READ(sb, s_dev));
}

// A walk from a dentry up to the root of its overlay, or to the top of the mount tree.
struct walk {
	u64 dentry, mnt;
	u32 off, done;
};

static long step_up(u32 index, void *ctx)
{
	struct walk *w = ctx;
	struct dentry *d = (void *)w->dentry;
	struct vfsmount *m = (void *)w->mnt;
	struct dentry *parent = BPF_CORE_READ(d, d_parent);
	struct out *o;
	long n;

	// inside the overlay the tree's own path counts, whatever mount led here
	if (m && d == BPF_CORE_READ(m, mnt_root) && !watched(BPF_CORE_READ(d, d_sb))) {
		struct mount *mount = (void *)m - bpf_core_field_offset(struct mount, mnt);
		struct mount *up = BPF_CORE_READ(mount, mnt_parent);
		if (up == mount) { w->done = 1; return 1; }
		w->dentry = (u64)BPF_CORE_READ(mount, mnt_mountpoint);
		w->mnt = (u64)up + bpf_core_field_offset(struct mount, mnt);
		return 0;
	}
	if (d == parent) {
		w->done = 1;
		return 1;
	}
	o = ONLY(scratch2);
	if (!o || w->off >= DATA - 256) return 1;
	n = bpf_probe_read_kernel_str(&o->data[w->off & (DATA - 1)], 256, BPF_CORE_READ(d, d_name.name));
	if (n > 0) w->off += n;
	w->dentry = (u64)parent;
	return 0;
}

// Sends the names from a dentry upwards, each with a NUL, leaf first, under `key`. Global, so that
// the verifier looks at it once and not for each caller.
__noinline int send_name(u64 dentry, u64 mnt, u64 key)
{
	struct walk w = { .dentry = dentry, .mnt = mnt };
	struct out *o = ONLY(scratch2);
	struct thread none = {};
	struct dentry *d = (void *)dentry;
	if (!o) return 0;
	bpf_loop(2048, step_up, &w, 0);
	if (!w.done) lose(STRING_CUT);
	begin(o, NAME, &none);
	o->head.value = key;
	if (watched(BPF_CORE_READ(d, d_sb))) o->head.flags |= ON_OVERLAY;
	o->head.lens[0] = w.off;
	return send(o, w.off);
}

// The key of a dentry's path: where every dentry on the way lies and what it is called. Pointers may
// be subtracted, not read.
static __noinline u64 long_chain_key(struct dentry *d)
{
	u64 h = 0x51;
	for (int i = 0; i < 64; i++) {
		struct dentry *up = d->d_parent;
		u64 from = (u64)d - (u64)up;
		if (!from) return mix(h, d->d_sb->s_dev);
		h = mix(h, from ^ ((u64)d->d_name.len << 32 | d->d_name.hash));
		d = up;
	}
	return mix(h, bpf_ktime_get_ns()); // too deep to be known again
}

static __always_inline u64 chain_key(struct dentry *d)
{
	u64 from = (u64)d - (u64)d->d_parent;
	return from ? long_chain_key(d) : mix(0x51, d->d_sb->s_dev);
}

// The key of a path, whose names the reader knows from here on; 0 if it could not be told.
static __always_inline u64 name_of(u64 key, u64 dentry, u64 mnt)
{
	if (known(key)) return key;
	if (!send_name(dentry, mnt, key)) return 0;
	remember(key);
	return key;
}

// The same for a path that the kernel holds; on another file system than the overlay's the mount is
// part of the name.
static __always_inline u64 path_key(struct path *path)
{
	struct dentry *d = path->dentry;
	return mix(chain_key(d), (u64)path->mnt - (u64)d);
}

static __always_inline u64 path_name(struct path *path, u64 key)
{
	u64 dentry = 0, mnt = 0;
	if (known(key)) return key;
	bpf_probe_read_kernel(&dentry, sizeof(dentry), &path->dentry);
	bpf_probe_read_kernel(&mnt, sizeof(mnt), &path->mnt);
	return dentry ? name_of(key, dentry, mnt) : 0;
}

// ---- mounts ---------------------------------------------------------------------------------

// Which state of which mount namespace.
static __always_inline u64 mounts_key(struct mnt_namespace *ns)
{
	return mix(mix(0x3077, ns->event ^ (u64)ns->ns.inum << 32), (u64)ns->root - (u64)ns);
}

struct mounts { u64 node, end; u32 ns, tree, count, done; };

// The next node of a red-black tree in order.
static __noinline u64 rb_next(u64 at)
{
	struct rb_node *node = (void *)at, *next = BPF_CORE_READ(node, rb_right);
	int i;
	if (next) {
		for (i = 0; i < 40; i++) {
			node = BPF_CORE_READ(next, rb_left);
			if (!node) break;
			next = node;
		}
		return (u64)next;
	}
	for (i = 0; i < 40; i++) {
		struct rb_node *up = (void *)(BPF_CORE_READ(node, __rb_parent_color) & ~3UL);
		if (!up || BPF_CORE_READ(up, rb_left) == node) return (u64)up;
		node = up;
	}
	return 0;
}

static long each_mount(u32 index, void *ctx)
{
	struct mounts *m = ctx;
	struct thread none = {};
	struct mount *mount, *up;
	struct dentry *root, *point;
	struct out *o = ONLY(scratch2);
	u64 upper, at, below;

	if (!m->node || m->node == m->end) { m->done = 1; return 1; }
	if (m->tree) {
		mount = (void *)m->node - bpf_core_field_offset(struct mount___tree, mnt_node);
		m->node = rb_next(m->node);
	} else {
		mount = (void *)m->node - bpf_core_field_offset(struct mount, mnt_list);
		m->node = (u64)BPF_CORE_READ(mount, mnt_list.next);
	}
	root = BPF_CORE_READ(mount, mnt.mnt_root);
	if (!root || !o) return 0; // the place of somebody who reads the list
	up = BPF_CORE_READ(mount, mnt_parent);
	upper = (u64)up + bpf_core_field_offset(struct mount, mnt);
	point = BPF_CORE_READ(mount, mnt_mountpoint);
	// never known before: a mount can be anywhere the next time
	at = mix(mix((u64)point, upper), bpf_ktime_get_ns() | 1);
	below = mix((u64)root, at);
	if (!send_name((u64)point, upper, at) || !send_name((u64)root, 0, below)) return 1;
	begin(o, MOUNT, &none);
	o->head.mnt_ns = m->ns;
	o->head.value = BPF_CORE_READ(mount, mnt_id);
	o->head.other = BPF_CORE_READ(mount, mnt.mnt_sb, s_dev);
	o->head.base = at;
	o->head.root = below;
	m->count++;
	return !send(o, 0);
}

// Reports every mount of a namespace.
__noinline int send_mounts(u64 addr)
{
	struct mnt_namespace *ns = (void *)addr;
	struct mounts m = { .ns = BPF_CORE_READ(ns, ns.inum) };
	struct thread none = {};
	struct out *o;
	if (bpf_core_field_exists(struct mount___tree, mnt_node)) {
		struct mnt_namespace___tree *tree = (void *)addr;
		struct rb_node *node = BPF_CORE_READ(tree, mounts.rb_node), *left;
		for (int i = 0; node && i < 40; i++) {
			left = BPF_CORE_READ(node, rb_left);
			if (!left) break;
			node = left;
		}
		m.node = (u64)node;
		m.tree = 1;
	} else {
		m.node = (u64)BPF_CORE_READ(ns, list.next);
		m.end = addr + bpf_core_field_offset(struct mnt_namespace, list);
	}
	bpf_loop(8192, each_mount, &m, 0);
	if (!m.done) lose(MOUNTS_UNKNOWN);
	o = ONLY(scratch2);
	if (!o) return 0;
	begin(o, MOUNTED, &none);
	o->head.mnt_ns = m.ns;
	o->head.value = m.count;
	return send(o, 0);
}

// The reader knows the mounts that the current task sees, unless that is a runtime which is still at the
// host's root. Called by programs and not where paths are looked at: it needs four frames of its own.
static __always_inline void tell_mounts(struct thread *t, struct task_struct *task)
{
	struct mnt_namespace *ns = task->nsproxy->mnt_ns;
	u64 addr = 0, key = mounts_key(ns);
	if (t->mounts == key || !watched_device(task->fs->root.dentry->d_sb->s_dev)) return;
	if (!known(key)) {
		bpf_probe_read_kernel(&addr, sizeof(addr), &task->nsproxy->mnt_ns);
		if (!addr || !send_mounts(addr)) return;
		remember(key);
	}
	t->mounts = key;
}

// ---- paths ----------------------------------------------------------------------------------

static __always_inline u64 file_of(struct task_struct *task, s32 fd)
{
	struct files_struct *files = task->files;
	struct fdtable *fdt;
	u64 file = 0;
	if (!files) return 0;
	fdt = files->fdt;
	if (fd < 0 || (u32)fd >= fdt->max_fds) return 0;
	bpf_probe_read_kernel(&file, sizeof(file), fdt->fd + fd);
	return file;
}

// A dentry's parent and its name's hash and length, which lie side by side: one read instead of three.
struct step { u64 up; u32 hash, len; };

static __always_inline struct step step_of(struct dentry *d)
{
	struct step s = {};
	u64 from = bpf_core_field_offset(struct dentry, d_parent);
	if (bpf_core_field_offset(struct dentry, d_name.hash) == from + 8 &&
	    bpf_core_field_offset(struct dentry, d_name.len) == from + 12) {
		bpf_probe_read_kernel(&s, sizeof(s), (void *)d + from);
	} else {
		s.up = (u64)BPF_CORE_READ(d, d_parent);
		s.hash = BPF_CORE_READ(d, d_name.hash);
		s.len = BPF_CORE_READ(d, d_name.len);
	}
	return s;
}

// chain_key for a dentry that is known by its address only.
static __noinline u64 address_key(u64 dentry)
{
	struct dentry *d = (void *)dentry;
	u64 h = 0x51;
	for (int i = 0; i < 64; i++) {
		struct step s = step_of(d);
		u64 from = (u64)d - s.up;
		if (!from) return mix(h, dentry);
		h = mix(h, from ^ ((u64)s.len << 32 | s.hash));
		d = (void *)s.up;
	}
	return mix(h, bpf_ktime_get_ns());
}

// `struct path` as it always was, of one that is known by its address only.
struct place { u64 mnt, dentry; };

static __always_inline struct place place_at(u64 path)
{
	struct place p = {};
	bpf_probe_read_kernel(&p, sizeof(p), (void *)path);
	return p;
}

static __always_inline struct place file_place(u64 file)
{
	return place_at(file + bpf_core_field_offset(struct file, f_path));
}

static __always_inline u64 place_key(struct place p)
{
	return mix(address_key(p.dentry), p.mnt);
}

static __always_inline int on_overlay(struct place p)
{
	struct dentry *d = (void *)p.dentry;
	return d && watched(BPF_CORE_READ(d, d_sb));
}

// The register of an argument. What a 64-bit program has in the upper half of one of a 32-bit call's, the
// call does not see; its seccomp filters do.
static __always_inline u64 reg(struct pt_regs *regs, u32 arch, u32 index)
{
	if (arch) {
		switch (index) {
		case 0: return regs->bx;
		case 1: return regs->cx;
		case 2: return regs->dx;
		case 3: return regs->si;
		case 4: return regs->di;
		default: return regs->bp;
		}
	}
	switch (index) {
	case 0: return regs->di;
	case 1: return regs->si;
	case 2: return regs->dx;
	case 3: return regs->r10;
	case 4: return regs->r8;
	default: return regs->r9;
	}
}

static __always_inline u64 arg(struct pt_regs *regs, u32 arch, u32 index)
{
	u64 value = reg(regs, arch, index);
	return arch ? (u32)value : value;
}

struct use {
	u32 pid;         // of the thread that counts as the user
	u32 arch, nr, which;
	s32 ret, fd;     // fd: the directory that a relative path starts from
	u32 len;         // of the string in `data`, with its NUL
	u32 mounts;      // the call changed the mounts: they were others when it looked
	u32 moves;       // the call moved the task: it looked from where the task stood before
	u32 kernel;      // the address is in the kernel's memory already
	u64 flags;
};

// Whether the folder behind a descriptor is still the one that the thread's last call started from. It was
// the only user of its descriptors then, and to share them takes a call; no call renamed a folder since. Who
// renames from outside of what is recorded is not seen; then the folder goes by the name that it had.
static __always_inline int same_folder(struct thread *t, u32 fd, struct state *st)
{
	return t->folder_fd == fd + 1 && t->renames == st->renames;
}

// Reports the string in `data`. Global, as all that follows from a call's end: looked at once.
__noinline int path_used(struct use *u, struct thread *t)
{
	struct task_struct *task = self();
	struct fs_struct *fs = task->fs;
	struct out *o = ONLY(scratch);
	struct state *st = ONLY(state);
	struct place folder = {};
	u64 key, root, base = 0, file;
	int absolute;
	u32 renames;

	if (!o || !st || !u || !t || !fs || u->len <= 1 || u->len > 4096) return 0;
	fill_up(o, u->len);
	absolute = o->data[0] == '/';
	if (!absolute && u->fd < 0 && u->fd != AT_FDCWD) return 0; // never a folder: EBADF
	root = u->moves ? t->root : path_key(&fs->root);
	key = mix((u64)u->nr | (u64)u->arch << 16 | (u64)u->which << 20 | (u64)class_of(t) << 24, u->ret < 0 ? u->ret : 0);
	key = mix(hash_data(mix(key, u->flags), u->len), root);
	key = mix(key, u->mounts ? mounts_key(task->nsproxy->mnt_ns) : t->mounts);
	if (!absolute && u->fd == AT_FDCWD) {
		base = u->moves ? t->pwd : path_key(&fs->pwd);
	} else if (!absolute) {
		if (same_folder(t, u->fd, st) && known(t->folder)) {
			base = t->folder;
		} else {
			renames = st->renames;
			file = file_of(task, u->fd);
			if (file) folder = file_place(file);
			if (folder.dentry) base = place_key(folder);
			if (u->pid == task->pid) { // and no thread of the kernel's own
				t->renames = renames;
				t->folder = base;
				t->folder_fd = task->files->count.counter == 1 ? u->fd + 1 : 0;
			}
		}
	}
	key = mix(key, base);
	if (known(key)) return 0;
	// A runtime that is still at the host's root. A hook there may use the overlay by its path on the host.
	if (u->moves ? !root : t->role != HOST_HOOK && !watched_device(fs->root.dentry->d_sb->s_dev)) return 0;
	begin(o, PATH, t);
	o->head.arch = u->arch;
	o->head.number = u->nr;
	o->head.result = u->ret;
	o->head.other = u->which;
	o->head.value = u->flags;
	o->head.mnt_ns = task->nsproxy->mnt_ns->ns.inum;
	o->head.lens[0] = u->len;
	o->head.flags |= ROOT_ON_OVERLAY;
	o->head.root = u->moves ? root : path_name(&fs->root, root);
	if (!o->head.root) return 0;
	if (!absolute && u->fd == AT_FDCWD) {
		o->head.base = u->moves ? base : path_name(&fs->pwd, base);
		if (!o->head.base) return 0;
	} else if (folder.dentry) {
		o->head.base = name_of(base, folder.dentry, folder.mnt);
		if (!o->head.base) return 0;
	} else if (!absolute) {
		o->head.base = base;
		o->head.flags |= base ? 0 : BASE_UNKNOWN;
	}
	if (send(o, u->len)) remember(key);
	return 0;
}

// When a call that moves its task ends, the task is elsewhere. So where each stands is kept, by its
// fs_struct: threads share one. Pointers suffice: what a task stood in when it called is there still, or
// at least not freed yet, when its call ends.
struct stood { struct place root, pwd; u64 pivots; };
struct { __uint(type, BPF_MAP_TYPE_LRU_HASH); __uint(max_entries, 32768); __type(key, u64); __type(value, struct stood); } standing SEC(".maps");

__noinline int stand(u64 fs)
{
	struct state *st = ONLY(state);
	struct stood s;
	if (!fs || !st) return 0;
	s.pivots = st->pivots;
	s.root = place_at(fs + bpf_core_field_offset(struct fs_struct, root));
	s.pwd = place_at(fs + bpf_core_field_offset(struct fs_struct, pwd));
	bpf_map_update_elem(&standing, &fs, &s, 0);
	return 0;
}

static __always_inline u64 fs_of(struct task_struct *task)
{
	u64 fs = 0;
	bpf_probe_read_kernel(&fs, sizeof(fs), &task->fs);
	return fs;
}

// pivot_root moves all who stand at the old root, or have it as theirs: old root → new one. Addresses are used
// again, so it holds for those only who stood there before the call.
struct pivot { struct place to; u64 number; };
struct { __uint(type, BPF_MAP_TYPE_LRU_HASH); __uint(max_entries, 1024); __type(key, struct place); __type(value, struct pivot); } pivots SEC(".maps");

#define FOLLOWED 4
// Follows a place through what happened since `since`, if that is not too much.
static __noinline int follow(struct place *at, u64 since)
{
	struct place now;
	if (!at) return 0;
	now = *at;
	for (int i = 0; i <= FOLLOWED; i++) {
		struct pivot *p = bpf_map_lookup_elem(&pivots, &now);
		if (!p || p->number <= since) break;
		if (i == FOLLOWED) {
			lose(STRING_FAULT);
			break;
		}
		since = p->number;
		*at = now = p->to;
	}
	return 0;
}

static __always_inline struct stood *stood_at(u64 fs)
{
	struct stood *s = bpf_map_lookup_elem(&standing, &fs);
	if (!s) return 0;
	follow(&s->root, s->pivots);
	follow(&s->pwd, s->pivots);
	return s;
}

// The current task has made its root another one.
__noinline int pivoted(u64 fs)
{
	struct stood *s = stood_at(fs);
	struct state *st = ONLY(state);
	struct pivot p;
	struct place old;
	if (!s || !st) return 0;
	old = s->root;
	p.to = place_at(fs + bpf_core_field_offset(struct fs_struct, root));
	p.number = __sync_fetch_and_add(&st->pivots, 1) + 1;
	bpf_map_update_elem(&pivots, &old, &p, 0);
	return 0;
}

// Names where the current task stood before its call.
__noinline int stood_before(struct thread *t)
{
	struct stood *s = stood_at(fs_of(self()));
	if (!t) return 0;
	t->root = t->pwd = 0;
	if (!s) {
		lose(STRING_FAULT);
		return 0;
	}
	if (t->role != HOST_HOOK && !on_overlay(s->root)) return 0;
	t->root = name_of(place_key(s->root), s->root.dentry, s->root.mnt);
	t->pwd = name_of(place_key(s->pwd), s->pwd.dentry, s->pwd.mnt);
	return 0;
}

// Whether a call with this result had read its path: others fail before they look at it.
static __always_inline int looked_up(s32 ret)
{
	switch (ret) {
	case -1:  // EPERM
	case -2:  // ENOENT
	case -13: // EACCES
	case -17: // EEXIST
	case -18: // EXDEV
	case -20: // ENOTDIR
	case -21: // EISDIR
	case -26: // ETXTBSY
	case -30: // EROFS
	case -40: // ELOOP
		return 1;
	default:
		return ret >= 0;
	}
}

// One path argument of a finished call.
static __always_inline void path_argument(struct use *u, struct thread *t, struct pt_regs *regs, struct call *c, u32 which)
{
	struct out *o = ONLY(scratch);
	u32 index = c->path[which], dir = c->dir[which];
	u64 ptr = arg(regs, u->arch, index - 1), flags = 0;
	long n;
	if (!o || !ptr) return;
	n = bpf_probe_read_user_str(o->data, 4096, (void *)ptr);
	if (n < 0) {
		if (looked_up(u->ret)) lose(STRING_FAULT);
		return;
	}
	// an empty string means the descriptor itself, which was seen when it was opened
	u->len = n;
	if (c->flags) flags = arg(regs, u->arch, (c->flags & ~BY_POINTER) - 1);
	if ((c->flags & BY_POINTER) && bpf_probe_read_user(&flags, sizeof(flags), (void *)flags)) {
		if (u->ret >= 0) lose(STRING_FAULT);
		flags = 0;
	}
	u->flags = flags;
	u->fd = dir ? (s32)arg(regs, u->arch, dir - 1) : AT_FDCWD;
	u->mounts = c->what == MOUNTS || c->what == PIVOT;
	u->moves = u->ret == 0 && (c->what == MOVES || c->what == PIVOT);
	path_used(u, t);
}

// ---- addresses ------------------------------------------------------------------------------

// The socket behind a descriptor; 0 if it is none.
static __noinline u64 socket_of(s32 fd)
{
	struct file *file = (void *)file_of(self(), fd);
	if (!file || (BPF_CORE_READ(file, f_inode, i_mode) & 0170000) != 0140000) return 0;
	return (u64)BPF_CORE_READ(file, private_data);
}

static __always_inline int send_address(struct out *o, struct use *u, struct thread *t, s32 fd, u32 len)
{
	struct socket *socket = (void *)socket_of(fd);
	u32 type = 0, protocol = 0;
	u64 key;
	if (socket) {
		type = (u16)BPF_CORE_READ(socket, type);
		protocol = BPF_CORE_READ(socket, sk, sk_protocol);
	}
	fill_up(o, len);
	key = mix((u64)u->nr | (u64)u->arch << 16 | (u64)class_of(t) << 24 | (u64)type << 32, u->ret < 0 ? u->ret : 0);
	key = hash_data(mix(key, 0xadd0 | (u64)protocol << 32), len);
	if (known(key)) return 0;
	begin(o, ADDRESS, t);
	o->head.arch = u->arch;
	o->head.number = u->nr;
	o->head.result = u->ret;
	o->head.value = type | (u64)protocol << 32;
	o->head.lens[0] = len;
	if (send(o, len)) remember(key);
	return 0;
}

// A socket address in user memory: a path of a unix socket, or an address of the network.
__noinline int address(struct use *u, s32 fd, u64 ptr, u32 len)
{
	struct out *o = ONLY(scratch);
	struct thread *t;
	u16 family = 0;
	if (!o || !u || !ptr || len < 2) return 0;
	t = thread_of(u->pid);
	if (!t) return 0;
	if (len > 128) len = 128;
	*(u64 *)&o->data[0] = 0;
	if (u->kernel ? bpf_probe_read_kernel(o->data, len, (void *)ptr) : bpf_probe_read_user(o->data, len, (void *)ptr)) {
		switch (u->ret) {
		case -9:  // EBADF
		case -14: // EFAULT
		case -22: // EINVAL
		case -88: // ENOTSOCK
			return 0; // not read by the call either
		}
		lose(STRING_FAULT);
		return 0;
	}
	family = *(u16 *)o->data;
	if (family == 1 && len > 2 && o->data[2]) {
		u32 most = len > 110 ? 109 : len - 1;
		long n = u->kernel ? bpf_probe_read_kernel_str(o->data, most, (void *)(ptr + 2))
				   : bpf_probe_read_user_str(o->data, most, (void *)(ptr + 2));
		if (n <= 0) return 0;
		u->which = 2;
		u->len = n;
		u->fd = AT_FDCWD;
		return path_used(u, t);
	}
	if (family != 1 && family != 2 && family != 10) return 0;
	if (family == 2 && len > 16) len = 16;
	if (family == 10 && len > 28) len = 28;
	if (family == 2 && len >= 16) *(u64 *)&o->data[8] = 0; // padding
	return send_address(o, u, t, fd, len);
}

// Where a message's address is.
static __noinline u64 message_name(u64 ptr, u32 arch, u32 *len)
{
	struct { u64 name; u32 len; } m = {};
	u32 half[2] = {};
	if (!len) return 0;
	if (arch) {
		bpf_probe_read_user(half, sizeof(half), (void *)ptr);
		m.name = half[0];
		m.len = half[1];
	} else {
		bpf_probe_read_user(&m, 12, (void *)ptr);
	}
	*len = m.len;
	return m.name;
}

// One of many messages. Global, or the verifier of Linux 6.1 looks at it once for each.
__noinline int message(struct use *u, s32 fd, u64 at)
{
	u32 len = 0;
	if (!u) return 0;
	at = message_name(at, u->arch, &len);
	return at ? address(u, fd, at, len) : 0;
}

// What a socket listens on, as a socket address.
__noinline int listening(struct use *u, s32 fd)
{
	struct socket *socket = (void *)socket_of(fd);
	struct out *o = ONLY(scratch);
	struct thread *t;
	struct sock *sk;
	u16 family, port;
	u32 len;
	if (!o || !socket || !u) return 0;
	t = thread_of(u->pid);
	if (!t) return 0;
	sk = BPF_CORE_READ(socket, sk);
	family = BPF_CORE_READ(sk, __sk_common.skc_family);
	if (family != 2 && family != 10) return 0;
	port = BPF_CORE_READ(sk, __sk_common.skc_num);
	len = family == 2 ? 16 : 28;
	__builtin_memset(o->data, 0, 40);
	*(u16 *)&o->data[0] = family;
	*(u16 *)&o->data[2] = __builtin_bswap16(port);
	if (family == 2) {
		*(u32 *)&o->data[4] = BPF_CORE_READ(sk, __sk_common.skc_rcv_saddr);
	} else {
		BPF_CORE_READ_INTO((struct in6_addr *)&o->data[8], sk, __sk_common.skc_v6_rcv_saddr);
	}
	return send_address(o, u, t, fd, len);
}

// ---- calls ----------------------------------------------------------------------------------

static __always_inline struct slot *slot_of(u32 call, u32 class)
{
	u32 arch = call >> 31, nr = call & 0x7fffffff;
	u32 at = (arch * CLASSES + class) * CALLS + (nr < CALLS ? nr : CALLS - 1);
	return bpf_map_lookup_elem(&slots, &at);
}

static __noinline int note(struct thread *t, u32 kind, u32 call, s32 ret)
{
	struct out *o = ONLY(scratch);
	if (!o || !t) return 0;
	begin(o, kind, t);
	o->head.arch = call >> 31;
	o->head.number = call & 0x7fffffff;
	o->head.result = ret;
	return send(o, 0);
}

// Values of one call that are told apart; then one event stands for all others.
#define MAX_VALUES 256

__noinline int note_value(u32 pid, u32 call, u64 value)
{
	struct out *o = ONLY(scratch);
	struct thread *t = thread_of(pid);
	struct slot *s;
	u64 key;
	if (!t || !o) return 0;
	s = slot_of(call, class_of(t));
	if (!s) return 0;
	if (s->values > MAX_VALUES) return 0;
	key = mix(mix(0x5a5a, (u64)call | (u64)class_of(t) << 32), value);
	if (known(key)) return 0;
	begin(o, VALUE, t);
	o->head.arch = call >> 31;
	o->head.number = call & 0x7fffffff;
	o->head.value = value;
	if (s->values == MAX_VALUES) o->head.flags |= OTHERS;
	if (send(o, 0)) {
		remember(key);
		s->values++;
	}
	return 0;
}

static __always_inline u64 socket_value(u64 domain, u64 type, u64 protocol)
{
	return (domain & 0xffff) | (type & 0xf) << 16 | (protocol & 0xffffffff) << 32;
}

static __noinline int note_args(u32 how, u32 call, struct pt_regs *regs)
{
	u32 arch = call >> 31;
	u64 value;
	if (!regs) return 0;
	if (how == SOCKET) {
		value = socket_value(arg(regs, arch, 0), arg(regs, arch, 1), arg(regs, arch, 2));
	} else if (how == SOCKOPT) {
		value = (u32)arg(regs, arch, 1) | arg(regs, arch, 2) << 32;
	} else if (how == EXECUTABLE) {
		value = (u32)arg(regs, arch, 2);
		if (!(value & PROT_EXEC)) return 0;
	} else {
		value = (u32)arg(regs, arch, how - 1);
	}
	return note_value((u32)bpf_get_current_pid_tgid(), call, value);
}

// A folder gets another name: what threads know of theirs holds no more. At either side of the call.
static __always_inline void renaming(void)
{
	struct state *s = ONLY(state);
	if (s) __sync_fetch_and_add(&s->renames, 1);
}

// A call of a thread, once.
__noinline int called(struct thread *t, u32 call)
{
	struct slot *s;
	if (!t || t->role == UNRECORDED) return 0;
	s = slot_of(call, class_of(t));
	if (s && !s->called && note(t, CALL, call, 0)) s->called = 1;
	return 0;
}

static __always_inline u32 arch_of(struct task_struct *task)
{
	return (task->thread_info.status & TS_COMPAT) != 0;
}

// The call that a task is in, as in `struct thread`; 0 for none.
static __always_inline u32 call_in(struct task_struct *task, struct pt_regs *regs)
{
	s32 nr = regs ? (s32)regs->orig_ax : -1;
	return nr < 0 ? 0 : (arch_of(task) << 31 | (u32)nr) + 1;
}

static __always_inline u32 call_of(struct task_struct *task)
{
	return call_in(task, (void *)bpf_task_pt_regs((void *)task));
}

// Attached only where the kernel keeps no filter's program (`both` of the configuration): a second
// program at each call costs more than all that this one does.
SEC("tp_btf/sys_enter")
int slim_enter(u64 *ctx)
{
	struct task_struct *task = self();
	struct thread *t = thread_of(task->pid);
	s32 nr = (s32)ctx[1];
	if (!t || nr < 0) return 0;
	t->call = (arch_of(task) << 31 | (u32)nr) + 1;
	return called(t, t->call - 1);
}

// The errno of a call's result; 0 for none. Those that ask for a restart are never seen by programs,
// which see EINTR or the call again.
static __always_inline u32 errno_of(s64 ret)
{
	if (ret >= 0 || ret < -4095) return 0;
	if (ret < -511) return 4;
	return ret > -192 ? -ret : 191;
}

static __noinline int note_error(struct thread *t, struct slot *s, u32 kind, u32 call, s32 ret)
{
	u32 number = errno_of(ret);
	u64 bit = 1ULL << (number & 63), *bits;
	if (!s || number > 191) return 0;
	bits = kind == REFUSED ? &s->refused[0] : &s->failed[0];
	if (number >= 128) bits += 2; else if (number >= 64) bits += 1;
	if (*bits & bit) return 0;
	if (note(t, kind, call, number ? -(s32)number : ret)) *bits |= bit;
	return 0;
}

// An executable mapping of a file.
__noinline int mapped(struct use *u, s32 fd)
{
	struct out *o = ONLY(scratch);
	struct place place;
	struct thread *t;
	u64 name, key, file;
	if (!o || !u) return 0;
	t = thread_of(u->pid);
	if (!t) return 0;
	file = file_of(self(), fd);
	if (!file) return 0;
	place = file_place(file);
	if (!on_overlay(place)) return 0;
	name = place_key(place);
	key = mix(name, 0x3a9 | class_of(t) << 16);
	if (known(key)) return 0;
	begin(o, MAP, t);
	o->head.arch = u->arch;
	o->head.number = u->nr;
	o->head.mnt_ns = self()->nsproxy->mnt_ns->ns.inum;
	o->head.flags |= EXE_ON_OVERLAY;
	o->head.exe = name_of(name, place.dentry, place.mnt);
	if (o->head.exe && send(o, 0)) remember(key);
	return 0;
}

// What else there is to see when a call ends. Inlined, because frames are few.
static __always_inline void more(struct use *u, u32 what, struct pt_regs *regs)
{
	u64 value = 0, at = 0, stride;
	u32 a[6] = {}, len = 0, one;
	s32 fd = arg(regs, u->arch, 0);
	u->flags = 0;
	u->mounts = 0;
	if (what == SOCKETCALL) {
		one = fd;
		if (one != 2 && one != 3 && one != 4 && one != 11 && one != 16) return;
		if (bpf_probe_read_user(a, one == 11 ? 24 : one == 4 ? 8 : 12, (void *)arg(regs, u->arch, 1))) {
			if (u->ret >= 0) lose(STRING_FAULT);
			return;
		}
		fd = a[0];
		what = one == 4 ? LISTEN : one == 16 ? MESSAGE : ADDR_1;
		at = one == 11 ? a[4] : a[1];
		len = one == 11 ? a[5] : a[2];
	} else if (what == ADDR_1 || what == ADDR_4 || what == MESSAGE || what == MESSAGES) {
		at = arg(regs, u->arch, what == ADDR_4 ? 4 : 1);
		len = arg(regs, u->arch, what == ADDR_4 ? 5 : 2);
	}
	if (what == MESSAGE) {
		at = message_name(at, u->arch, &len);
		what = ADDR_1;
	}
	switch (what) {
	case ADDR_1: case ADDR_4:
		if (at) address(u, fd, at, len);
		return;
	case MESSAGES:
		// the one after those that were sent may have failed
		one = u->ret < 0 ? 1 : u->ret + 1;
		if (one > len) one = len;
		stride = u->arch ? 32 : 64;
		for (int i = 0; i < 16; i++) {
			if (i >= one) return;
			message(u, fd, at);
			at += stride;
		}
		value = message_name(at, u->arch, &len);
		len = 0;
		if (one > 16 && value) bpf_probe_read_user(&len, 2, (void *)value);
		if (len == 1) lose(STRING_CUT); // one more path of a socket
		return;
	case LISTEN:
		if (u->ret == 0) listening(u, fd);
		return;
	case MAPPING:
		if (u->ret < 0 || !(arg(regs, u->arch, 2) & PROT_EXEC) || arg(regs, u->arch, 3) & MAP_ANONYMOUS) return;
		mapped(u, arg(regs, u->arch, 4));
		return;
	case CLONE3:
		if (!bpf_probe_read_user(&value, sizeof(value), (void *)arg(regs, u->arch, 0)))
			note_value(u->pid, u->arch << 31 | u->nr, value);
	}
}

// ---- refused calls --------------------------------------------------------------------------

#define RET_ALLOW 0x7fff0000
#define RET_LOG   0x7ffc0000
#define RET_TRACE 0x7ff00000
#define RET_NOTIFY 0x7fc00000
#define RET_ERRNO 0x00050000

// A call that seccomp refuses looks at its end like one that failed with the same errno. So the task's
// filters are asked again: the kernel keeps what it knows of them by a call's number (Linux 5.11), and
// for checkpoints the programs as they were loaded (CONFIG_CHECKPOINT_RESTORE).
struct judge {
	u64 filter, code; // the next filter; the current one's program
	u32 len, at, a, x;
	u32 action;      // the strictest so far
	u32 looked;      // at more than the number and the architecture
	u32 done, pad;
	u32 data[16];    // struct seccomp_data
	u32 memory[16];
};
struct { __uint(type, BPF_MAP_TYPE_PERCPU_ARRAY); __uint(max_entries, 1); __type(key, u32); __type(value, struct judge); } judges SEC(".maps");

struct sock_filter { u16 code; u8 jt, jf; u32 k; };

static __always_inline u32 computed(u32 op, u32 a, u32 b)
{
	switch (op) {
	case 0x00: return a + b;
	case 0x10: return a - b;
	case 0x20: return a * b;
	case 0x30: return a / b;
	case 0x40: return a | b;
	case 0x50: return a & b;
	case 0x60: return a << (b & 31);
	case 0x70: return a >> (b & 31);
	case 0x80: return -a;
	default: return a ^ b;
	}
}

static __always_inline int holds(u32 op, u32 a, u32 b)
{
	switch (op) {
	case 0x10: return a == b;
	case 0x20: return a > b;
	case 0x30: return a >= b;
	default: return (a & b) != 0;
	}
}

// One instruction of a filter (seccomp_check_filter, kernel/seccomp.c, lists what there is).
static long judge_step(u32 index, void *ctx)
{
	struct judge *j = ONLY(judges);
	struct sock_filter i = {};
	u32 operand, value = 0;
	if (!j) return 1;
	if (!j->code) {
		struct seccomp_filter *filter = (void *)j->filter;
		struct sock_fprog_kern *kept;
		if (!filter) { j->done = 1; return 1; }
		kept = BPF_CORE_READ(filter, prog, orig_prog);
		if (!kept) return 1;
		j->code = (u64)BPF_CORE_READ(kept, filter);
		j->len = BPF_CORE_READ(kept, len);
		j->filter = (u64)BPF_CORE_READ(filter, prev);
		j->at = j->a = j->x = 0;
		return 0;
	}
	if (j->at >= j->len || bpf_probe_read_kernel(&i, sizeof(i), (void *)(j->code + 8ULL * j->at))) return 1;
	j->at++;
	operand = i.code & 8 ? j->x : i.k;
	switch (i.code & 7) {
	case 0: // LD: a word of the data, an immediate, memory, the data's length
	case 1: // LDX
		switch (i.code & 0xe0) {
		case 0x20:
			if (i.k != 0 && i.k != 4) j->looked = 1;
			value = j->data[i.k >> 2 & 15];
			break;
		case 0x60: value = j->memory[i.k & 15]; break;
		case 0x80: value = 64; break;
		default: value = i.k;
		}
		if (i.code & 1) j->x = value;
		else j->a = value;
		return 0;
	case 2: j->memory[i.k & 15] = j->a; return 0;
	case 3: j->memory[i.k & 15] = j->x; return 0;
	case 4:
		if ((i.code & 0xf0) == 0x30 && !operand) goto end; // a division by zero ends a filter with 0
		j->a = computed(i.code & 0xf0, j->a, operand);
		return 0;
	case 5:
		if (!(i.code & 0xf0)) j->at += i.k;
		else j->at += holds(i.code & 0xf0, j->a, operand) ? i.jt : i.jf;
		return 0;
	case 6:
		value = (i.code & 0x18) == 0x10 ? j->a : i.k;
	end:
		if ((s32)(value & 0xffff0000) < (s32)(j->action & 0xffff0000)) j->action = value;
		j->code = 0;
		return 0;
	default: // TAX, TXA
		if (i.code & 0x80) j->a = j->x;
		else j->x = j->a;
		return 0;
	}
}

// Whether the kernel knows that a filter and all before it allow every call of this number.
static __always_inline int always_allowed(u64 filter, u32 arch, u32 nr)
{
	struct seccomp_filter *f = (void *)filter;
	u64 word = 0, at = filter + (nr / 64) * 8;
	if (!bpf_core_field_exists(f->cache.allow_native) || nr >= 8 * bpf_core_field_size(f->cache.allow_native)) return 0;
	if (!arch) at += bpf_core_field_offset(f->cache.allow_native);
	else if (bpf_core_field_exists(f->cache.allow_compat)) at += bpf_core_field_offset(f->cache.allow_compat);
	else return 0;
	bpf_probe_read_kernel(&word, sizeof(word), (void *)at);
	return word >> (nr & 63) & 1;
}

// What the current task's filters say to a call: SECCOMP_RET_*. Keeps it where the number alone decides.
__noinline u32 judged(struct slot *s, u32 call)
{
	struct judge *j = ONLY(judges);
	struct state *st = ONLY(state);
	struct task_struct *task = self();
	struct pt_regs *regs = (void *)bpf_task_pt_regs((void *)task);
	u64 filter = 0;
	u32 arch = call >> 31, nr = call & 0x7fffffff;
	if (!s || !regs || !j || !st) return RET_ALLOW;
	bpf_probe_read_kernel(&filter, sizeof(filter), &task->seccomp.filter);
	__builtin_memset(j, 0, sizeof(*j));
	j->action = RET_ALLOW;
	if (!always_allowed(filter, arch, nr)) {
		j->filter = filter;
		j->data[0] = nr;
		j->data[1] = arch ? 0x40000003 : 0xc000003e; // AUDIT_ARCH_*
		*(u64 *)&j->data[2] = regs->ip;
#pragma unroll
		for (int i = 0; i < 6; i++) *(u64 *)&j->data[4 + 2 * i] = reg(regs, arch, i);
		bpf_loop(65536, judge_step, 0, 0);
		if (!j->done) {
			lose(STRING_FAULT);
			return RET_ALLOW;
		}
		// numbers that no call has share a place
		if (j->looked || nr >= CALLS - 1 || !j->action) return j->action;
	}
	s->filter = filter;
	s->filters = st->filters;
	s->verdict = j->action;
	return j->action;
}

// Whether a call that ended so never reached the kernel. What a filter hands to a tracer or to a listener
// counts as having reached it: a filter that is stricter than that would win.
static __always_inline int refused(struct task_struct *task, struct slot *s, u32 call, s64 ret)
{
	u32 action, number;
	struct config *c = ONLY(config);
	struct state *st = ONLY(state);
	if (c && c->both) return 1;
	if (!st || !bpf_core_field_exists(task->seccomp.filter)) return 0;
	if (ret > 0 && ret != (s64)(call & 0x7fffffff)) return 0;
	if (!task->seccomp.filter) return 0;
	action = s->filter == (u64)task->seccomp.filter && s->filters == st->filters ? s->verdict : 0;
	if (!action) action = judged(s, call);
	number = action & 0xffff;
	switch (action & 0xffff0000) {
	case RET_ALLOW: case RET_LOG: case RET_TRACE: case RET_NOTIFY: return 0;
	case RET_ERRNO: return ret == -(s64)(number > 4095 ? 4095 : number);
	default: return ret == (s64)(call & 0x7fffffff); // traps and kills: put back for the signal
	}
}

// What was known of filters by their addresses holds no more.
static __always_inline void filtering(void)
{
	struct state *s = ONLY(state);
	if (s) __sync_fetch_and_add(&s->filters, 1);
}

// ---- the end of a call ----------------------------------------------------------------------

// How a signal handler returns.
enum frames { NATIVE = 1, X32 = 2, COMPAT = 4, COMPAT_INFO = 8 };

// A return from a signal handler has overwritten the number that it was called by.
static __noinline int returned(struct thread *t, struct task_struct *task, s64 ret)
{
	u32 frames, compat = 1u << 31;
	if (!t || !task) return 0;
	frames = t->frames;
	t->folder_fd = 0;
	if (!frames) {
		if (ret == -38 || task->ptrace) return 0; // no call, or one that a tracer took away
		frames = arch_of(task) ? COMPAT_INFO : NATIVE;
	}
	if (arch_of(task)) {
		if (frames & COMPAT) called(t, compat | 119);
		if (frames & COMPAT_INFO) called(t, compat | 173);
		return 0;
	}
	if (frames & X32) called(t, 0x40000201);
	if (frames & NATIVE) called(t, 15);
	return 0;
}

SEC("tp_btf/signal_deliver")
int slim_signal(u64 *ctx)
{
	struct thread *t = current_thread();
	struct k_sigaction *action = (void *)ctx[2];
	u64 flags, handler;
	if (!t) return 0;
	handler = (u64)BPF_CORE_READ(action, sa.sa_handler);
	if (handler <= 1) return 0; // default, ignored
	flags = BPF_CORE_READ(action, sa.sa_flags);
	// SA_IA32_ABI, SA_X32_ABI, SA_SIGINFO
	t->frames |= flags & 0x02000000 ? flags & 4 ? COMPAT_INFO : COMPAT : flags & 0x01000000 ? X32 : NATIVE;
	return 0;
}

// What a call that ended did to more than itself.
static __always_inline void unusual(struct thread *t, struct call *c, struct pt_regs *regs, u32 arch, s64 ret)
{
	u64 first = arg(regs, arch, 0), fs;
	if (c->traits & RENAMES) renaming();
	if (c->traits & ENDS) t->back = 1;
	// SECCOMP_SET_MODE_FILTER, PR_SET_SECCOMP
	if (c->traits & FILTERS && ret >= 0 && (first == 1 || first == 22)) filtering();
	if (ret || !(c->traits & STANDS)) return;
	if (c->what >= MOVES && t->role != UNRECORDED) stood_before(t);
	fs = fs_of(self());
	if (c->what == PIVOT) pivoted(fs);
	stand(fs);
}

// All of a call is seen at its end: the second program that would see its begin costs every call of the
// machine more than this one does. What is gone by then is kept beforehand (`executing`, `standing`,
// `frames`), and what never ends here is seen at the task's exit.
SEC("tp_btf/sys_exit")
int slim_exit(u64 *ctx)
{
	struct pt_regs *regs = (void *)ctx[0];
	struct task_struct *task = self();
	struct thread *t = thread_of(task->pid);
	s64 ret = (s64)ctx[1];
	struct slot *s;
	struct call *c;
	u32 call, begun;

	if (!t) return 0;
	begun = call = t->call;
	if (begun) {
		t->call = 0;
		call -= 1;
	}
	if (!begun || begun == ELSEWHERE) {
		call = call_in(task, regs);
		if (!call) return (s32)regs->orig_ax == -1 ? returned(t, task, ret) : 0;
		call -= 1;
	}
	s = slot_of(call, class_of(t));
	if (!s) return 0;
	c = &s->call;
	if (!(c->traits & KEEPS)) t->folder_fd = 0;
	if (c->traits & ~KEEPS) unusual(t, c, regs, call >> 31, ret);
	if (t->role == UNRECORDED) return 0;
	// nearly all calls leave here; a filter's trap leaves the number, its error 0 nothing that is looked for
	if (s->called && ret >= 0 && ret != (s64)(call & 0x7fffffff) && !c->path[0] && !c->what && !c->args) return 0;
	if (!begun || begun == ELSEWHERE) {
		if (!begun && refused(task, s, call, ret)) {
			note_error(t, s, REFUSED, call, ret < 0 ? (s32)ret : 0);
			return 0;
		}
		if (!s->called && note(t, CALL, call, 0)) s->called = 1;
	}
	if (errno_of(ret)) note_error(t, s, FAILED, call, ret);
	if (c->args) note_args(c->args, call, regs);
	if (!c->path[0] && !c->what) return 0;
	struct use u = { .pid = task->pid, .arch = call >> 31, .nr = call & 0x7fffffff };
	u.ret = ret < -4095 ? 0 : ret > 0x7fffffff ? 0x7fffffff : (s32)ret;
	// after a call that changed the mounts they are others than when it looked
	if (c->what != MOUNTS && c->what != PIVOT) tell_mounts(t, task);
	for (u32 i = 0; i < 2; i++) {
		if (!c->path[i]) break;
		u.which = i;
		path_argument(&u, t, regs, c, i);
	}
	if (c->what) more(&u, c->what, regs);
	return 0;
}

// A look at what tasks are in: calls that wait, some for as long as the container runs. `scratch` is in
// use by the calls of others meanwhile.
struct { __uint(type, BPF_MAP_TYPE_ARRAY); __uint(max_entries, 1); __type(key, u32); __type(value, struct out); } scratch3 SEC(".maps");

SEC("iter/task")
int slim_inside(struct bpf_iter__task *ctx)
{
	struct task_struct *task = ctx->task;
	struct out *o = ONLY(scratch3);
	struct thread *t;
	struct slot *s;
	u32 call;
	if (!task || !o) return 0;
	t = thread_of(task->pid);
	if (!t || t->role == UNRECORDED || t->call || !task->__state) return 0;
	call = call_of(task);
	if (!call) return 0;
	call -= 1;
	s = slot_of(call, class_of(t));
	if (!s || s->called) return 0;
	begin(o, CALL, t);
	o->head.uid = BPF_CORE_READ(task, real_cred, uid.val);
	o->head.arch = call >> 31;
	o->head.number = call & 0x7fffffff;
	if (send(o, 0)) s->called = 1;
	return 0;
}

// ---- tasks ----------------------------------------------------------------------------------

#define OUTSIDE 0xffff

// The role that a task's place in the tree of cgroups gives it, or OUTSIDE of the recorded one.
__noinline u32 role_at(u64 addr)
{
	struct css_set *set = (void *)addr;
	struct config *c = ONLY(config);
	struct cgroup *at = BPF_CORE_READ(set, dfl_cgrp);
	struct cgroup_subsys_state *up;
	u64 id;
	if (!c) return OUTSIDE;
	for (int i = 0; i < 64; i++) {
		if (BPF_CORE_READ(at, kn, id) == c->cgroup) goto inside;
		up = BPF_CORE_READ(at, self.parent);
		if (!up) return OUTSIDE;
		at = BPF_CORE_READ(up, cgroup);
	}
	return OUTSIDE;
inside:
	at = BPF_CORE_READ(set, dfl_cgrp);
	for (int i = 0; i < 64; i++) {
		u32 *role;
		id = BPF_CORE_READ(at, kn, id);
		role = bpf_map_lookup_elem(&roles, &id);
		if (role) return *role;
		if (id == c->cgroup) break;
		at = BPF_CORE_READ(at, self.parent, cgroup);
	}
	return MAIN;
}

static __always_inline u32 role_of(struct task_struct *task)
{
	u64 addr = 0;
	bpf_probe_read_kernel(&addr, sizeof(addr), &task->cgroups);
	return role_at(addr);
}

// A thread begins to be recorded.
static __noinline int enlist(u32 pid, struct thread *t)
{
	u32 *index = bpf_map_lookup_elem(&tasks, &pid), at = 0;
	struct state *s = ONLY(state);
	struct thread *mine;
	if (!t) return 0;
	if (!index || !s) goto full;
	if (*index) {
		at = *index - 1;
	} else if (bpf_map_pop_elem(&unused, &at)) {
		if (s->threads >= s->size) goto full;
		at = __sync_fetch_and_add(&s->threads, 1);
	}
	mine = bpf_map_lookup_elem(&threads, &at);
	if (!mine) goto full;
	*mine = *t;
	*index = at + 1;
	return 1;
full:
	lose(MAP_FULL);
	return 0;
}

static __noinline int discharge(u32 pid)
{
	u32 *index = bpf_map_lookup_elem(&tasks, &pid), at;
	if (!index || !*index) return 0;
	at = *index - 1;
	*index = 0;
	bpf_map_push_elem(&unused, &at, 0);
	return 0;
}

struct moving { u64 node, end; u32 role, tgid, came, left; };

static long each_thread(u32 index, void *ctx)
{
	struct moving *m = ctx;
	struct thread t = {};
	struct task_struct *task;
	u32 pid;
	if (!m->node || m->node == m->end) return 1;
	task = (void *)m->node - bpf_core_field_offset(struct task_struct, thread_node);
	m->node = (u64)BPF_CORE_READ(task, thread_node.next);
	pid = BPF_CORE_READ(task, pid);
	if (m->role == OUTSIDE) {
		if (!thread_of(pid)) return 0;
		m->left = 1;
		discharge(pid);
	} else if (!thread_of(pid)) {
		t.tgid = m->tgid;
		t.role = m->role;
		t.call = ELSEWHERE;
		m->came |= enlist(pid, &t);
		stand((u64)BPF_CORE_READ(task, fs));
	}
	return 0;
}

// A process was moved to another cgroup, of whichever hierarchy: where it is now decides.
SEC("tp_btf/cgroup_attach_task")
int slim_attach(u64 *ctx)
{
	struct task_struct *task = (void *)ctx[2];
	struct moving m = {};
	struct thread t = {};
	struct out *o = ONLY(scratch);
	m.role = role_of(task);
	if (m.role == OUTSIDE && !thread_of(task->pid)) return 0;
	m.tgid = reader_pid(task);
	bpf_probe_read_kernel(&m.end, sizeof(m.end), &task->signal);
	m.end += bpf_core_field_offset(struct signal_struct, thread_head);
	bpf_probe_read_kernel(&m.node, sizeof(m.node), (void *)m.end);
	bpf_loop(65536, each_thread, &m, 0);
	if (m.left) lose(LEFT_CGROUP);
	if (!m.came || !o) return 0;
	filtering();
	t.tgid = m.tgid;
	t.role = m.role;
	begin(o, SIGHT, &t);
	send(o, 0);
	return 0;
}

SEC("tp_btf/sched_process_fork")
int slim_fork(u64 *ctx)
{
	struct task_struct *parent = (void *)ctx[0], *child = (void *)ctx[1];
	u32 cpid = child->pid, one = 1, pid, role;
	struct thread *t = thread_of(parent->pid);
	struct thread copy = {};
	struct out *o = ONLY(scratch);
	int process = cpid == child->tgid;
	u32 call;
	u64 fs;

	if (!o) return 0;
	role = role_of(child);
	if (role != OUTSIDE) {
		fs = fs_of(child);
		if (!t || fs != fs_of(parent)) stand(fs);
		if (!t) filtering();
		// the child ends the same call, maybe first
		else if ((call = call_of(self()))) called(t, call - 1);
		// forked here, or cloned into the cgroup from outside (CLONE_INTO_CGROUP)
		if (t) copy = *t;
		else copy.role = role;
		if (!t) copy.call = ELSEWHERE;
		if (process || !t) copy.tgid = reader_pid(child);
		if (!enlist(cpid, &copy) || !process) return 0;
		if (!t) {
			begin(o, SIGHT, &copy);
		} else {
			begin(o, FORK, t);
			o->head.other = copy.tgid;
		}
		send(o, 0);
		return 0;
	}
	if (!process) return 0;
	pid = reader_pid(parent);
	if (t) {
		lose(LEFT_CGROUP);
		return 0;
	}
	if (!pid || !bpf_map_lookup_elem(&hosts, &pid)) return 0;
	copy.tgid = pid;
	pid = reader_pid(child);
	if (bpf_map_update_elem(&hosts, &pid, &one, BPF_ANY)) lose(MAP_FULL);
	begin(o, HOST, &copy);
	o->head.other = pid;
	send(o, 0);
	return 0;
}

struct found { u64 file; };

static long at_start(struct task_struct *task, struct vm_area_struct *vma, void *ctx)
{
	struct found *f = ctx;
	bpf_probe_read_kernel(&f->file, sizeof(f->file), &vma->vm_file);
	return 0;
}

// True for a process that is no container's first and was started by what is not in the image yet:
// an OCI hook, not the entrypoint.
static __noinline int is_hook(struct task_struct *task, struct thread *t)
{
	struct thread *parent = thread_of(BPF_CORE_READ(task, real_parent, tgid));
	struct pid *pid = BPF_CORE_READ(task, thread_pid);
	u32 level = BPF_CORE_READ(pid, level);
	struct upid number = {};
	u64 at = (u64)pid + bpf_core_field_offset(pid->numbers) + (level & 31) * sizeof(number);
	if (!t || (t->role != MAIN && t->role != RUN) || !parent || parent->entered) return 0;
	bpf_probe_read_kernel(&number, sizeof(number), (void *)at);
	return number.nr != 1;
}

// True for slim's own program that becomes a hook outside of the container; only the runtime, which is not in
// the image yet, is asked.
static __always_inline int starts_hook(struct mm_struct *mm)
{
	u64 name = 0;
	bpf_probe_read_user(&name, sizeof(name), (void *)mm->arg_start);
	return name == HOOK_MARK;
}

// The name of what is mapped. Since Linux 6.5 an overlay maps the file below, behind which the path above
// is kept; the flag that tells such files has moved about. Behind another file there is no overlay's path.
static __noinline u64 mapped_name(u64 file)
{
	struct place p = file_place(file);
	if (!on_overlay(p)) {
		if (!bpf_core_field_exists(struct backing_file, user_path)) return 0; // before 6.7 it maps itself
		p = place_at(file + bpf_core_field_offset(struct backing_file, user_path));
		if (!on_overlay(p)) return 0;
	}
	return name_of(place_key(p), p.dentry, p.mnt);
}

// Which call executes, by thread id (LRU: some never come to their end).
struct { __uint(type, BPF_MAP_TYPE_LRU_HASH); __uint(max_entries, 4096); __type(key, u32); __type(value, u32); } executing SEC(".maps");

// A task is renamed by prctl, and on its way into another program: the last moment at which the number
// of that call is there, and whether it is a 32-bit one. A thread other than the leader has the leader's
// id by now, but is not in `tasks` by it.
SEC("tp_btf/task_rename")
int slim_rename(u64 *ctx)
{
	struct task_struct *task = self();
	u32 pid = task->pid, call = call_of(task);
	struct slot *s;
	if (!call) return 0;
	s = slot_of(call - 1, 0);
	// of x32: 520 and 545
	if (call - 1 != 0x40000208 && call - 1 != 0x40000221 && !(s && s->call.traits & EXECUTES)) return 0;
	bpf_map_update_elem(&executing, &pid, &call, 0);
	return 0;
}

SEC("tp_btf/sched_process_exec")
int slim_exec(u64 *ctx)
{
	struct task_struct *task = (void *)ctx[0];
	struct linux_binprm *bprm = (void *)ctx[2];
	u32 old = (u32)ctx[1], pid = (u32)bpf_get_current_pid_tgid(), off;
	struct found loader = {};
	struct fs_struct *fs;
	struct pt_regs *regs;
	struct mm_struct *mm;
	struct thread *t;
	struct state *s = ONLY(state);
	struct out *o = ONLY(scratch);
	u64 exe = 0;
	int wake = 0;
	u32 *call;
	long len;

	if (!o || !s) return 0;
	call = bpf_map_lookup_elem(&executing, &pid);
	if (old != pid) {
		// a thread that was not the leader takes the leader's id
		u32 *was = bpf_map_lookup_elem(&tasks, &old), *is = bpf_map_lookup_elem(&tasks, &pid);
		if (was && is && *was) {
			discharge(pid);
			*is = *was;
			*was = 0;
		}
	}
	t = thread_of(pid);
	if (!t) return 0;
	if (call && *call) {
		called(t, *call - 1);
		t->call = *call;
		*call = 0;
	}
	t->frames = 0;
	stand(fs_of(task));
	fs = task->fs;
	mm = task->mm;
	if (!t->entered && t->role != UNRECORDED && starts_hook(mm)) {
		t->role = HOST_HOOK;
		t->entered = 1;
	}
	if (watched_device(fs->root.dentry->d_sb->s_dev)) {
		if (!t->entered && is_hook(task, t)) t->role = HOOK;
		t->entered = 1;
		tell_mounts(t, task);
	}
	begin(o, EXEC, t);
	o->head.mnt_ns = task->nsproxy->mnt_ns->ns.inum;
	if (t->entered) {
		o->head.base = path_name(&fs->pwd, path_key(&fs->pwd));
		o->head.root = path_name(&fs->root, path_key(&fs->root));
		if (watched_device(fs->root.dentry->d_sb->s_dev)) o->head.flags |= ROOT_ON_OVERLAY;
	}
	bpf_probe_read_kernel(&exe, sizeof(exe), &mm->exe_file);
	if (exe) {
		struct place place = file_place(exe);
		o->head.exe = name_of(place_key(place), place.dentry, place.mnt);
		if (on_overlay(place)) o->head.flags |= EXE_ON_OVERLAY;
	}
	// what runs first is the ELF interpreter, which the kernel opened by itself
	regs = (void *)bpf_task_pt_regs((void *)self());
	if (regs) bpf_find_vma((void *)self(), regs->ip, at_start, &loader, 0);
	if (loader.file && t->entered) o->head.loader = mapped_name(loader.file);
	len = bpf_probe_read_kernel_str(o->data, 4096, BPF_CORE_READ(bprm, filename));
	off = o->head.lens[0] = len > 0 ? len & 0x1fff : 0;
	len = bpf_probe_read_kernel_str(&o->data[off & (DATA - 1)], 2048, BPF_CORE_READ(bprm, interp));
	o->head.lens[1] = len > 0 ? len : 0;
	off += o->head.lens[1];
	len = bpf_probe_read_user_str(&o->data[off & (DATA - 1)], 512, (void *)mm->arg_start);
	o->head.lens[2] = len > 0 ? len : 0;
	off += o->head.lens[2];
	if (!s->woken && t->entered && t->role == MAIN) wake = s->woken = 1;
	put(o, off, wake);
	return 0;
}

SEC("tp_btf/sched_process_exit")
int slim_gone(u64 *ctx)
{
	struct task_struct *task = (void *)ctx[0];
	u32 pid = task->pid;
	struct thread *t = thread_of(pid);
	int live = BPF_CORE_READ(task, signal, live.counter);
	struct out *o = ONLY(scratch);
	struct slot *s;
	u32 call;
	if (!o) return 0;
	if (t) {
		call = call_of(self());
		s = call ? slot_of(call - 1, class_of(t)) : 0;
		// not a thread that another one's end takes along just when its own call was refused
		if (s && (s->call.traits & ENDS) && (!t->back || !(task->exit_code & 0x7f)))
			called(t, call - 1);
		if (live == 0) {
			begin(o, EXIT, t);
			o->head.flags |= LAST_THREAD;
			send(o, 0);
		}
		discharge(pid);
	} else if (live == 0) {
		pid = reader_pid(task);
		if (pid) bpf_map_delete_elem(&hosts, &pid);
	}
	return 0;
}

// ---- more than calls ------------------------------------------------------------------------

// A capability that was asked for and granted to the task's own credentials (Linux 6.14).
SEC("tp_btf/cap_capable")
int slim_capable(u64 *ctx)
{
	struct thread *t = current_thread();
	struct state *s = ONLY(state);
	struct out *o;
	u32 cap = (u32)ctx[3], class;
	u64 cred = ctx[0], real = 0;
	if (!t || !s || (s32)ctx[4] != 0 || t->role == UNRECORDED || !t->entered || cap > 63) return 0;
	class = class_of(t) & (CLASSES - 1);
	if (s->capable[class] & 1ULL << cap) return 0;
	struct task_struct *task = self();
	bpf_probe_read_kernel(&real, sizeof(real), &task->real_cred);
	o = ONLY(scratch);
	if (!o || cred != real) return 0;
	begin(o, CAPABILITY, t);
	o->head.value = cap;
	if (send(o, 0)) s->capable[class] |= 1ULL << cap;
	return 0;
}

// What operations with two paths have, each in a type of its own but under the same names.
#define TWO_PATHS(type) do { \
	type *two_ = (void *)addr; \
	u.fd = BPF_CORE_READ(two_, old_dfd); \
	fd2 = BPF_CORE_READ(two_, new_dfd); \
	name = BPF_CORE_READ(two_, oldpath); \
	second = BPF_CORE_READ(two_, newpath); \
} while (0)

static __always_inline int socket_operation(u32 opcode)
{
	// sendmsg, connect, send, send_zc, sendmsg_zc, bind
	return opcode == 9 || opcode == 16 || opcode == 26 || opcode == 47 || opcode == 48 || opcode == 56;
}

// The descriptor that an operation of io_uring was given; -1 for a file that its ring holds, which has none.
static __always_inline s32 submitted_fd(u64 addr)
{
	struct io_kiocb *req = (void *)addr;
	if (!bpf_core_field_exists(req->cqe.fd) || (BPF_CORE_READ(req, flags) & 1)) return -1; // REQ_F_FIXED_FILE
	return BPF_CORE_READ(req, cqe.fd);
}

// The address that an operation of io_uring was given. Since Linux 6.11 the kernel copies some of them before
// an operation is submitted, and keeps nothing else.
__noinline int submitted_address(struct use *u, u64 addr, u32 opcode)
{
	struct io_kiocb *req = (void *)addr;
	struct io_async_msghdr *copy = 0;
	u16 family = 0;
	u64 name = 0;
	u32 len = 0;
	if (!u) return 0;
	u->fd = submitted_fd(addr);
	if (bpf_core_type_exists(struct io_bind)) copy = BPF_CORE_READ(req, async_data);
	if (opcode == 16 && bpf_core_type_exists(struct io_connect)) {
		struct io_connect *io = (void *)addr;
		u->nr = 42; // connect
		name = (u64)BPF_CORE_READ(io, addr);
		len = BPF_CORE_READ(io, addr_len);
	} else if ((opcode == 9 || opcode == 48) && bpf_core_field_exists(((struct io_sr_msg *)0)->umsg)) {
		struct io_sr_msg *io = (void *)addr;
		u->nr = 46; // sendmsg
		name = message_name((u64)BPF_CORE_READ(io, umsg), 0, &len);
	} else if ((opcode == 26 || opcode == 47) && bpf_core_field_exists(((struct io_sr_msg___addr *)0)->addr)) {
		struct io_sr_msg___addr *io = (void *)addr;
		u->nr = 44; // sendto
		name = (u64)BPF_CORE_READ(io, addr);
		len = BPF_CORE_READ(io, addr_len);
	} else if ((opcode == 26 || opcode == 47) && copy) {
		u->nr = 44;
		u->kernel = 1;
		name = (u64)BPF_CORE_READ(copy, msg.msg_name);
		len = BPF_CORE_READ(copy, msg.msg_namelen);
	} else if (opcode == 56 && copy) {
		struct io_bind *io = (void *)addr;
		u->nr = 49; // bind
		u->kernel = 1;
		name = (u64)copy;
		bpf_probe_read_kernel(&family, sizeof(family), copy);
		// the address alone in later versions of 6.18; what has it further behind begins with a pointer
		if (!(family & 7)) name += bpf_core_field_offset(copy->addr);
		len = BPF_CORE_READ(io, addr_len);
	}
	return address(u, u->fd, name, len);
}

// io_uring works past the call tracepoints: its operations are recorded as values of the call, and
// the paths that they were given as if by the calls of the same name. How they end is not known.
__noinline int submitted(u64 addr, u32 pid)
{
	struct io_kiocb *req = (void *)addr;
	struct thread *t = thread_of(pid);
	struct out *o = ONLY(scratch);
	struct use u = { .pid = pid, .fd = AT_FDCWD };
	struct filename *name = 0, *second = 0;
	s32 fd2 = AT_FDCWD;
	u32 opcode;
	long n;
	if (!t || !o || t->role == UNRECORDED) return 0;
	tell_mounts(t, self());
	opcode = BPF_CORE_READ(req, opcode);
	note_value(pid, 426, opcode); // io_uring_enter
	if (socket_operation(opcode)) return submitted_address(&u, addr, opcode);
	if (opcode == 57) { // of a socket that was bound by another operation or call
		u.nr = 50; // listen
		return listening(&u, submitted_fd(addr));
	}
	if ((opcode == 18 || opcode == 28) && bpf_core_type_exists(struct io_open)) {
		struct io_open *io = (void *)addr;
		u.nr = 257; // openat
		u.fd = BPF_CORE_READ(io, dfd);
		u.flags = BPF_CORE_READ(io, how.flags);
		name = BPF_CORE_READ(io, filename);
	} else if (opcode == 21 && bpf_core_type_exists(struct io_statx)) {
		struct io_statx *io = (void *)addr;
		u.nr = 332; // statx
		u.fd = BPF_CORE_READ(io, dfd);
		u.flags = BPF_CORE_READ(io, flags);
		name = BPF_CORE_READ(io, filename);
	} else if (opcode == 36 && bpf_core_type_exists(struct io_unlink)) {
		struct io_unlink *io = (void *)addr;
		u.nr = 263; // unlinkat
		u.fd = BPF_CORE_READ(io, dfd);
		name = BPF_CORE_READ(io, filename);
	} else if (opcode == 35 && bpf_core_type_exists(struct io_rename)) {
		u.nr = 316; // renameat2
		renaming();
		TWO_PATHS(struct io_rename);
	} else if (opcode == 39 && bpf_core_type_exists(struct io_link)) {
		struct io_link *io = (void *)addr;
		u.nr = 265; // linkat
		u.flags = (u32)BPF_CORE_READ(io, flags);
		TWO_PATHS(struct io_link);
	} else if (opcode == 38 && bpf_core_type_exists(struct io_link)) {
		struct io_link *io = (void *)addr;
		u.nr = 266; // symlinkat, whose first path is but a text
		u.fd = BPF_CORE_READ(io, new_dfd);
		name = BPF_CORE_READ(io, newpath);
	} else if (opcode == 37 && bpf_core_type_exists(struct io_mkdir)) {
		struct io_mkdir *io = (void *)addr;
		u.nr = 258; // mkdirat
		u.fd = BPF_CORE_READ(io, dfd);
		name = BPF_CORE_READ(io, filename);
	} else if ((opcode == 42 || opcode == 44) && bpf_core_type_exists(struct io_xattr)) {
		struct io_xattr *io = (void *)addr;
		u.nr = opcode == 42 ? 188 : 191; // setxattr, getxattr
		name = BPF_CORE_READ(io, filename);
	}
	if (!name) return 0;
	n = bpf_probe_read_kernel_str(o->data, 4096, BPF_CORE_READ(name, name));
	if (n > 0) {
		u.len = n;
		path_used(&u, t);
	}
	if (!second) return 0;
	n = bpf_probe_read_kernel_str(o->data, 4096, BPF_CORE_READ(second, name));
	if (n > 0) {
		u.len = n;
		u.fd = fd2;
		u.which = 1;
		path_used(&u, t);
	}
	return 0;
}

// The kernel's own threads of a ring (SQPOLL) belong to the process, and no fork announces them.
static __always_inline u32 submitter(void)
{
	u64 both = bpf_get_current_pid_tgid();
	if (thread_of((u32)both)) return both;
	return thread_of(both >> 32) ? both >> 32 : 0;
}

SEC("tp_btf/io_uring_submit_req")
int slim_uring(u64 *ctx)
{
	u32 pid = submitter();
	u64 req = 0;
	if (!pid) return 0;
	bpf_probe_read_kernel(&req, sizeof(req), ctx);
	return submitted(req, pid);
}

// Before Linux 6.1 the tracepoint was called so; the request was its first argument, and before that
// (5.19) its second.
SEC("tp_btf/io_uring_submit_sqe")
int slim_uring_sqe(u64 *ctx)
{
	u32 pid = submitter();
	struct io_kiocb *req = (void *)ctx[0];
	u64 addr = 0;
	if (!pid) return 0;
	if (req->opcode > 200) return 0; // refused by the verifier if the argument is no request
	bpf_probe_read_kernel(&addr, sizeof(addr), ctx);
	return submitted(addr, pid);
}

SEC("tp_btf/io_uring_submit_sqe")
int slim_uring_old(u64 *ctx)
{
	u32 pid = submitter();
	return pid ? submitted(ctx[1], pid) : 0;
}

char _license[] SEC("license") = "GPL";
