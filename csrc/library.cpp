// The entry points, and the choice of instruction set. Compiled for the oldest machine the library runs on.

#include <stdlib.h>
#include <string.h>

#include "call.h"
#include "host.h"
#include "kernels.h"

#if defined(__SSE2__)
#include <xmmintrin.h>
#endif
#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

#if defined(ALIBI_THREADS_PTHREAD)
#include <pthread.h>
#endif
#if defined(ALIBI_GUARDED)
#include <sanitizer/asan_interface.h>
#endif

namespace alibi {

extern const Kernels kernels_baseline;
#if defined(ALIBI_HAS_AVX2)
extern const Kernels kernels_avx2;
extern const Kernels kernels_avx512;
#if defined(ALIBI_HAS_AVX512BF16)
extern const Kernels kernels_avx512bf16;
#endif
#if defined(ALIBI_HAS_AMX)
extern const Kernels kernels_amx;
#endif
#endif

namespace {

// What a thread's floating point does: where it rounds to, what it flushes, what it traps.
#if defined(__SSE2__)
using Mode = unsigned;
constexpr Mode kFlushing = 0x1f80 | 0x8040;
Mode current_mode() {
    return _mm_getcsr();
}
void set_mode(Mode mode) {
    _mm_setcsr(mode);
}
#elif defined(__aarch64__)
using Mode = uint64_t;
constexpr Mode kFlushing = Mode(1) << 24;
Mode current_mode() {
    Mode mode;
    asm volatile("mrs %0, fpcr" : "=r"(mode));
    return mode;
}
void set_mode(Mode mode) {
    asm volatile("msr fpcr, %0" : : "r"(mode));
}
#else
// No switch is known here: denormals cost time and change nothing.
using Mode = int;
constexpr Mode kFlushing = 0;
Mode current_mode() {
    return 0;
}
void set_mode(Mode) {}
#endif

// A denormal costs a hundred cycles and holds nothing a sum would notice: the tails of a softmax are full of them.
// Whatever else the caller has set, rounding in another direction, exceptions that trap, is put aside with it: in every
// thread of a team, and for what the calling thread does alone.
class FlushDenormals {
 public:
    FlushDenormals() : saved_(current_mode()) { set_mode(kFlushing); }
    ~FlushDenormals() { set_mode(saved_); }
    FlushDenormals(const FlushDenormals&) = delete;
    FlushDenormals& operator=(const FlushDenormals&) = delete;

 protected:
    Mode saved_;
};

// The same around a whole call, whose caller's mode is known meanwhile. Every entry point has one, and no call another.
class Within : FlushDenormals {
 public:
    Within() { caller_ = &saved_; }
    ~Within() { caller_ = nullptr; }

    // Threads are born with the mode of whoever needs them first, and keep it for all that is not ours.
    class Outside {
     public:
        Outside() { set_mode(*caller_); }
        ~Outside() { set_mode(kFlushing); }
        Outside(const Outside&) = delete;
        Outside& operator=(const Outside&) = delete;
    };

 private:
    static thread_local const Mode* caller_;
};

thread_local const Mode* Within::caller_ = nullptr;

constexpr size_t kLine = 64;
constexpr int kSlots = 1;

void* aligned(size_t bytes) {
    return aligned_alloc(kLine, (bytes + kLine - 1) / kLine * kLine + kLine);
}

struct Slots {
    void* memory[kSlots] = {};
    size_t bytes[kSlots] = {};
    ~Slots() {
        for (void* block : memory) free(block);
    }
};

thread_local Slots slots;

struct Choice {
    const char* name;
    const Kernels* kernels;
    bool supported;
};

// In order of preference.
struct Choices {
    Choice list[5];
    int count;
};

#if defined(ALIBI_HAS_AMX)
bool has_matrix_unit() {
#if defined(ALIBI_UNIT_IN_WORDS)
    return true;
#elif defined(__linux__)
    unsigned int eax = 0, ebx = 0, ecx = 0, edx = 0;
    constexpr unsigned int kNeeded = 1u << 22 | 1u << 24;  // AMX-BF16, AMX-TILE
    return __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) && (edx & kNeeded) == kNeeded;
#else
    // Other systems are not known to let a process have its registers.
    return false;
#endif
}

// Linux gives a process the unit's eight KiB of registers if it asks, and for good: from then on it refuses it signal
// stacks too small to save them on, as it refuses the registers while there is one. So it is asked late, and once.
bool may_use_matrix_unit() {
#if defined(ALIBI_UNIT_IN_WORDS)
    return true;
#elif defined(__linux__)
    constexpr long kRequest = 0x1023, kRegisters = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    static const bool granted = syscall(SYS_arch_prctl, kRequest, kRegisters) == 0;
    return granted;
#else
    return false;
#endif
}
#endif

Choices choices() {
#if defined(ALIBI_HAS_AVX2)
    __builtin_cpu_init();
    // Of F16C compilers have known by name for few years only: CPUID itself is asked.
    unsigned int eax = 0, ebx = 0, ecx = 0, edx = 0;
    const bool f16c = __get_cpuid(1, &eax, &ebx, &ecx, &edx) && (ecx & (1u << 29));
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && f16c;
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    // Of what the compiler that built this had never heard of: for a caller, a machine that lacks it.
    Choice pairs = {"avx512bf16", nullptr, false}, matrix = {"amx", nullptr, false};
#if defined(ALIBI_HAS_AVX512BF16)
    pairs.kernels = &kernels_avx512bf16;
    pairs.supported = avx512 && __builtin_cpu_supports("avx512bf16");
#endif
#if defined(ALIBI_HAS_AMX)
    matrix.kernels = &kernels_amx;
    matrix.supported = pairs.supported && has_matrix_unit();
#endif
    return {
        {matrix,
         pairs,
         {"avx512", &kernels_avx512, avx512},
         {"avx2", &kernels_avx2, avx2},
         {"baseline", &kernels_baseline, true}},
        5
    };
#else
    return {{{"baseline", &kernels_baseline, true}}, 1};
#endif
}

const Choice* chosen = nullptr;

#if defined(ALIBI_THREADS_PTHREAD)
struct Member {
    void (*body)(void*, int64_t);
    void* context;
    int64_t number;
};

void* run_member(void* argument) {
    const Member* member = static_cast<const Member*>(argument);
    FlushDenormals flush;
    member->body(member->context, member->number);
    return nullptr;
}
#endif

}  // namespace

#if defined(ALIBI_GUARDED)
void guard(void* gap) {
    __asan_poison_memory_region(gap, static_cast<size_t>(kGap));
}

static void* undefined(void* block, size_t bytes) {
    if (!block) return nullptr;
    __asan_unpoison_memory_region(block, bytes);
    return memset(block, 0xff, bytes);
}
#else
static void* undefined(void* block, size_t) {
    return block;
}
#endif

void* scratch(int slot, size_t bytes) {
    if (slots.bytes[slot] < bytes) {
        free(slots.memory[slot]);
        slots.memory[slot] = aligned(bytes);
        slots.bytes[slot] = slots.memory[slot] ? bytes : 0;
    }
    return undefined(slots.memory[slot], bytes);
}

void* take_block(size_t bytes) {
    return undefined(aligned(bytes), bytes);
}
void release_block(void* block) {
    free(block);
}

void run_team(int64_t threads, void (*body)(void*, int64_t), void* context) {
    if (threads <= 1) return body(context, 0);
    const Within::Outside outside;
#if defined(ALIBI_THREADS_PTHREAD)
    // For the thread sanitizer, which does not see inside an OpenMP runtime.
    pthread_t others[64];
    Member members[64];
    const int64_t count = threads < 64 ? threads : 64;
    for (int64_t i = 0; i < count; ++i) members[i] = {body, context, i};
    for (int64_t i = 1; i < count; ++i) pthread_create(&others[i], nullptr, run_member, &members[i]);
    run_member(&members[0]);
    for (int64_t i = 1; i < count; ++i) pthread_join(others[i], nullptr);
#else
    int64_t members = 0;
#pragma omp parallel num_threads(static_cast<int>(threads))
    {
        FlushDenormals flush;
        body(context, __atomic_fetch_add(&members, 1, __ATOMIC_RELAXED));
    }
#endif
}

}  // namespace alibi

#define ALIBI_EXPORT extern "C" __attribute__((visibility("default")))

// Chooses the instruction set: the named one, or for null or "" the best the machine has. Not to be called while
// another call runs. Returns 0, 1 for a name there is none of, 2 for one that the machine lacks, 3 for a matrix unit
// that is asked for by name and that the system refuses.
ALIBI_EXPORT int alibi_choose(const char* name) {
    using namespace alibi;
    static const Choices all = choices();
    const bool any = !name || !*name;
    for (int i = 0; i < all.count; ++i) {
        if (!any && strcmp(name, all.list[i].name) != 0) continue;
        if (!all.list[i].supported) {
            if (any) continue;
            return 2;
        }
#if defined(ALIBI_HAS_AMX)
        if (!any && all.list[i].kernels == &kernels_amx && !may_use_matrix_unit()) return 3;
#endif
        __atomic_store_n(&chosen, &all.list[i], __ATOMIC_RELEASE);
        return 0;
    }
    return 1;
}

ALIBI_EXPORT const char* alibi_chosen() {
    return alibi::chosen ? alibi::chosen->name : "";
}

// What a caller must agree on: the interface's number, bytes of a call, queries in a block, keys in a tile, bytes of an
// append and of an audit. Where the number is another, what follows it may be anything.
ALIBI_EXPORT const int64_t* alibi_layout() {
    static const int64_t layout[6] = {alibi::kInterface, sizeof(alibi::Call),   alibi::kBlock,
                                      alibi::kTile,      sizeof(alibi::Append), sizeof(alibi::Audit)};
    return layout;
}

// Divisors and extents. What Python has checked cannot fail; what calls without it must not end the process.
static bool is_sound(const alibi::Call& call) {
    return call.batch > 0 && call.kv_heads > 0 && call.heads > 0 && call.heads % call.kv_heads == 0 && call.q_len > 0 &&
           call.k_len > 0 && call.head_dim > 0 && call.value_dim > 0 && (call.seed || !(call.dropout > 0.0));
}

// The kernels that serve a call: of the chosen ones those without the matrix unit where the system refuses it.
static const alibi::Kernels& kernels_for(const alibi::Call& call) {
#if defined(ALIBI_HAS_AMX)
    if (call.type == alibi::kBFloat16 && alibi::chosen->kernels == &alibi::kernels_amx && !alibi::may_use_matrix_unit())
        return alibi::kernels_avx512bf16;
#endif
    static_cast<void>(call);
    return *alibi::chosen->kernels;
}

ALIBI_EXPORT int64_t alibi_forward(const alibi::Call* call) {
    if (call->size != sizeof(alibi::Call)) return alibi::kWrongSize;
    if (!is_sound(*call)) return alibi::kWrongShape;
    const alibi::Within within;
    return kernels_for(*call).forward(*call);
}

ALIBI_EXPORT int64_t alibi_backward(const alibi::Call* call) {
    if (call->size != sizeof(alibi::Call)) return alibi::kWrongSize;
    if (!is_sound(*call)) return alibi::kWrongShape;
    const alibi::Within within;
    return kernels_for(*call).backward(*call);
}

ALIBI_EXPORT int64_t alibi_append(const alibi::Append* call) {
    if (call->size != sizeof(alibi::Append)) return alibi::kWrongSize;
    if (call->kv_heads <= 0 || call->head_dim <= 0 || call->value_dim <= 0) return alibi::kWrongShape;
    const alibi::Within within;
    return alibi::chosen->kernels->append(*call);
}

ALIBI_EXPORT int64_t alibi_audit(const alibi::Audit* call) {
    if (call->size != sizeof(alibi::Audit)) return alibi::kWrongSize;
    if (call->kv_heads <= 0 || call->heads % call->kv_heads != 0) return alibi::kWrongShape;
    const alibi::Within within;
    return alibi::chosen->kernels->audit(*call);
}
