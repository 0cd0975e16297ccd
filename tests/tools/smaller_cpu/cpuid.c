/* Hide instructions of the processor from the program that preloads this library, and from its children.
 *
 * Linux lets CPUID fault on processors with the flag cpuid_fault (arch_prctl(2), ARCH_SET_CPUID). The handler runs the
 * instruction, and clears the bits of leaf 7 that are not in SMALLER_CPU_MASKS. Libraries that choose their kernels by
 * CPUID then choose those of the smaller processor. Threads and forked processes inherit the fault; a program that they
 * start preloads this library again. The file named by SMALLER_CPU_CPUINFO is read in place of /proc/cpuinfo.
 */
#define _GNU_SOURCE
#include <asm/prctl.h>
#include <cpuid.h>
#include <dlfcn.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

static uint32_t ebx_7, ecx_7, edx_7, eax_7_1, edx_7_1; /* the bits that stay */
static const char *cpuinfo;
static struct sigaction of_program; /* the program's own handler, for all other faults */

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static void fail(const char *message) {
  dprintf(2, "smaller_cpu: %s\n", message);
  _exit(1);
}

static int set_cpuid_faults(int faults) { return syscall(SYS_arch_prctl, ARCH_SET_CPUID, faults ? 0L : 1L); }

static void on_fault(int number, siginfo_t *info, void *context) {
  greg_t *registers = ((ucontext_t *)context)->uc_mcontext.gregs;
  const unsigned char *code = (const unsigned char *)registers[REG_RIP];
  if (info->si_code != SI_KERNEL || code[0] != 0x0f || code[1] != 0xa2) { /* not CPUID */
    if (of_program.sa_flags & SA_SIGINFO)
      of_program.sa_sigaction(number, info, context);
    else if (of_program.sa_handler != SIG_DFL && of_program.sa_handler != SIG_IGN)
      of_program.sa_handler(number);
    else if (!REAL(sigaction)(number, &of_program, NULL))
      raise(number);
    return;
  }
  uint32_t leaf = registers[REG_RAX], subleaf = registers[REG_RCX], eax, ebx, ecx, edx;
  set_cpuid_faults(0);
  __cpuid_count(leaf, subleaf, eax, ebx, ecx, edx);
  set_cpuid_faults(1);
  if (leaf == 7 && subleaf == 0) {
    ebx &= ebx_7;
    ecx &= ecx_7;
    edx &= edx_7;
  } else if (leaf == 7 && subleaf == 1) {
    eax &= eax_7_1;
    edx &= edx_7_1;
  }
  registers[REG_RAX] = eax;
  registers[REG_RBX] = ebx;
  registers[REG_RCX] = ecx;
  registers[REG_RDX] = edx;
  registers[REG_RIP] += 2;
}

__attribute__((constructor(101))) static void start(void) {
  const char *masks = getenv("SMALLER_CPU_MASKS");
  cpuinfo = getenv("SMALLER_CPU_CPUINFO");
  if (!cpuinfo || !masks || sscanf(masks, "%x,%x,%x,%x,%x", &ebx_7, &ecx_7, &edx_7, &eax_7_1, &edx_7_1) != 5)
    fail("SMALLER_CPU_MASKS or SMALLER_CPU_CPUINFO is not set");
  /* Not on an alternate stack: OpenVINO's plugin sets one, and leaves it set when it is unloaded. */
  struct sigaction action = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO | SA_NODEFER};
  if (REAL(sigaction)(SIGSEGV, &action, &of_program) || set_cpuid_faults(1))
    fail("this processor, or its hypervisor, cannot trap CPUID");
}

/* A program's handler of SIGSEGV comes second. */

int sigaction(int number, const struct sigaction *action, struct sigaction *old) {
  if (number != SIGSEGV)
    return REAL(sigaction)(number, action, old);
  struct sigaction before = of_program;
  if (action)
    of_program = *action;
  if (old)
    *old = before;
  return 0;
}

sighandler_t signal(int number, sighandler_t handler) {
  if (number != SIGSEGV)
    return REAL(signal)(number, handler);
  sighandler_t before = of_program.sa_handler;
  of_program = (struct sigaction){.sa_handler = handler};
  return before;
}

/* All the ways to open a file that libc exports. */

static const char *instead_of(const char *path) { return path && !strcmp(path, "/proc/cpuinfo") ? cpuinfo : path; }

#define OPEN(name)                                                                                                     \
  int name(const char *path, int flags, ...) {                                                                         \
    va_list rest;                                                                                                      \
    va_start(rest, flags);                                                                                             \
    mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0;                                            \
    va_end(rest);                                                                                                      \
    return REAL(name)(instead_of(path), flags, mode);                                                                  \
  }
OPEN(open)
OPEN(open64)

#define OPENAT(name)                                                                                                   \
  int name(int folder, const char *path, int flags, ...) {                                                             \
    va_list rest;                                                                                                      \
    va_start(rest, flags);                                                                                             \
    mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0;                                            \
    va_end(rest);                                                                                                      \
    return REAL(name)(folder, instead_of(path), flags, mode);                                                          \
  }
OPENAT(openat)
OPENAT(openat64)

FILE *fopen(const char *path, const char *mode) { return REAL(fopen)(instead_of(path), mode); }
FILE *fopen64(const char *path, const char *mode) { return REAL(fopen64)(instead_of(path), mode); }
