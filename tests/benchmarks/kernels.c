/* The memory manager's hot loops in plain C, with software prefetch where access is random.

The yardstick for hostsim's kernels: the same algorithms over the very same arrays, with the same
random numbers, so that both leave equal arrays. It has the paths that the benchmarks take: guests
that are booted and hold all of their memory, in frames of one kind. Whatever else would be needed
ends the process. layout.h is written from hostsim.state's dtypes when this is compiled.

Random accesses are known ahead, as draws are counter-based: a page's state byte and content word
are fetched FAR draws before their turn, what the word points to NEAR draws before, and what a hint
points to NEXT draws before. */

#include <stdint.h>
#include <stdlib.h>
#include "layout.h"

enum { RING = 64, FAR = 32, NEAR = 16, NEXT = 8 };
#define FETCH(place) __builtin_prefetch((void *)(place), 1)
#define REQUIRE(holds) do { if (!(holds)) abort(); } while (0)

static const uint64_t WEYL = 0x9E3779B97F4A7C15u;
static const uint64_t MIX_1 = 0xBF58476D1CE4E5B9u, MIX_2 = 0x94D049BB133111EBu;

typedef struct {
    Host *host;
    Vm *vms;
    uint8_t *page, *shared_kind, *loud;
    uint32_t *content, *stale;
    int64_t *indexed, *lost, *debts, *sampled, *n_heard, *order;
    int32_t *heard, *heard_at;
    double *powers;
    int64_t n_stale, n_loud, n_samples, n_rows;
} State;

typedef int64_t Table[TABLE_COLUMNS];

static inline State state_of(const Table *table) {
#define ARRAY(name) (void *)table[ARRAY_##name][0]
    return (State){
        .host = ARRAY(host), .vms = ARRAY(vms), .page = ARRAY(page), .content = ARRAY(content),
        .shared_kind = ARRAY(shared_kind), .indexed = ARRAY(indexed),
        .stale = ARRAY(stale), .lost = ARRAY(lost),
        .debts = ARRAY(debts), .sampled = ARRAY(sampled), .order = ARRAY(order),
        .loud = ARRAY(loud), .heard = ARRAY(heard), .heard_at = ARRAY(heard_at),
        .n_heard = ARRAY(n_heard), .powers = ARRAY(powers),
        .n_stale = table[ARRAY_stale][1], .n_loud = table[ARRAY_heard][1],
        .n_samples = table[ARRAY_sampled][2], .n_rows = table[ARRAY_order][1],
    };
}

/* Random numbers: hostsim/rng.py. */

static inline uint64_t mix(uint64_t value) {
    value = (value ^ (value >> 30)) * MIX_1;
    value = (value ^ (value >> 27)) * MIX_2;
    return value ^ (value >> 31);
}

static uint64_t stream(const Host *host, uint64_t purpose, int64_t owner) {
    uint64_t key = mix((uint64_t)host->seed + WEYL);
    key = mix(key ^ (purpose * MIX_1));
    key = mix(key ^ ((uint64_t)(owner + 1) * MIX_2));
    return mix(key ^ ((uint64_t)host->tick * WEYL));
}

static inline int64_t place_of(uint64_t word, int64_t n) {
    return (int64_t)(((word >> 32) * (uint64_t)n) >> 32);
}

static inline int64_t below(uint64_t key, int64_t index, int64_t bound) {
    return place_of(mix(key + (uint64_t)index * WEYL), bound);
}

static inline int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t max(int64_t a, int64_t b) { return a > b ? a : b; }

/* Pages and frames: hostsim/state.py and frames.py. */

static inline void set_state(State *st, int64_t slot, int state) {
    st->page[slot] = (st->page[slot] & ~(STATE | HINT | KIND | ACCESSED)) | state;
}

static inline void own(State *st, Vm *vm, int64_t slot, int kind) {
    st->page[slot] |= kind;
    vm->resident += 1;
    vm->highmem += kind == KIND;
}

static inline int disown(State *st, Vm *vm, int64_t slot) {
    int kind = st->page[slot] & KIND;
    vm->resident -= 1;
    vm->highmem -= kind == KIND;
    return kind;
}

static inline int take_frame(State *st) {
    int high = st->host->highmem_free > 0;
    st->host->free -= 1;
    st->host->highmem_free -= high;
    return high * KIND;
}

static inline void release_frame(State *st, int kind) {
    st->host->free += 1;
    st->host->highmem_free += kind == KIND;
}

/* Hints: hostsim/share.py. */

static inline int64_t refs_of(const State *st, int64_t content) {
    return max(-st->indexed[content], 0);
}

static inline int64_t hint_on(const State *st, int64_t content) { return st->indexed[content] - 1; }

static inline void set_hint(State *st, int64_t content, int64_t key) {
    st->indexed[content] = key + 1;
}

static inline int64_t home_of(const State *st, int64_t key) {
    return place_of(mix((uint64_t)key), st->n_stale);
}

static inline int64_t after(const State *st, int64_t i) { return i + 1 < st->n_stale ? i + 1 : 0; }

static inline int64_t distance(const State *st, int64_t start, int64_t end) {
    return end >= start ? end - start : end - start + st->n_stale;
}

static inline int64_t stale_at(const State *st, int64_t i) { return (int64_t)st->stale[i] - 1; }

static void stale_put(State *st, int64_t content) {
    int64_t i = home_of(st, hint_on(st, content));
    while (st->stale[i] != 0) i = after(st, i);
    st->stale[i] = (uint32_t)content + 1;
}

static int64_t stale_find(const State *st, int64_t key) {
    for (int64_t i = home_of(st, key); st->stale[i] != 0; i = after(st, i))
        if (hint_on(st, stale_at(st, i)) == key) return i;
    return -1;
}

static void stale_remove(State *st, int64_t i) {
    for (int64_t j = after(st, i); st->stale[j] != 0; j = after(st, j)) {
        int64_t home = home_of(st, hint_on(st, stale_at(st, j)));
        if (distance(st, home, j) >= distance(st, i, j)) {
            st->stale[i] = st->stale[j];
            i = j;
        }
    }
    st->stale[i] = 0;
}

static inline int drop_hint(State *st, int64_t v, int64_t ppn) {
    int64_t slot = st->vms[v].base_slot + ppn;
    if ((st->page[slot] & HINT) == 0) return 0;
    int64_t word = st->content[slot];
    st->host->hint_frames -= 1;
    st->page[slot] &= ~HINT;
    if ((word & STALE) == 0) {
        if ((word & UNIQUE) == 0) set_hint(st, word & INDEX, -1);
        return 0;
    }
    st->content[slot] = (uint32_t)(word & ~STALE);
    int64_t i = stale_find(st, v << PPN_BITS | ppn);
    if (i >= 0) {
        set_hint(st, stale_at(st, i), -1);
        stale_remove(st, i);
    }
    return 1;
}

static inline void rewrite(State *st, int64_t v, int64_t ppn, int64_t word) {
    int64_t slot = st->vms[v].base_slot + ppn, old = st->content[slot];
    if (st->page[slot] & HINT) {
        if ((old & STALE) == 0) {
            if (old != word) {
                if ((old & UNIQUE) == 0) stale_put(st, old);
                word |= STALE;
            }
        } else {
            int64_t i = stale_find(st, v << PPN_BITS | ppn);
            if (i >= 0 && stale_at(st, i) == word) stale_remove(st, i);
            else word |= STALE;
        }
    }
    st->content[slot] = (uint32_t)word;
}

static inline int to_shared(State *st, int64_t v, int64_t ppn) {
    Vm *vm = &st->vms[v];
    int64_t slot = vm->base_slot + ppn;
    int accessed = st->page[slot] & ACCESSED, kind = disown(st, vm, slot);
    set_state(st, slot, SHARED);
    st->page[slot] |= accessed;
    st->indexed[st->content[slot] & INDEX] -= 1;
    vm->shared += 1;
    return kind;
}

static inline int match(State *st, int64_t v, int64_t ppn, int insert_hint) {
    int64_t slot = st->vms[v].base_slot + ppn, word = st->content[slot];
    if ((word & UNIQUE) == 0) {
        if (refs_of(st, word) > 0) {
            release_frame(st, to_shared(st, v, ppn));
            return 1;
        }
        int64_t hint = hint_on(st, word);
        if (hint >= 0) {
            int64_t other_v = hint >> PPN_BITS, other_ppn = hint & (((int64_t)1 << PPN_BITS) - 1);
            int64_t other = st->content[st->vms[other_v].base_slot + other_ppn];
            st->host->stale_hints += drop_hint(st, other_v, other_ppn);
            if (other == word) {
                st->shared_kind[word] = (uint8_t)to_shared(st, other_v, other_ppn);
                release_frame(st, to_shared(st, v, ppn));
                st->host->distinct += 1;
                return 1;
            }
        }
        if (insert_hint) set_hint(st, word, v << PPN_BITS | ppn);
    }
    if (insert_hint) {
        st->page[slot] |= HINT;
        st->host->hint_frames += 1;
    }
    return 0;
}

/* What lies ahead of random accesses. */

static inline void fetch_page(const State *st, int64_t slot) {
    FETCH(&st->page[slot]);
    FETCH(&st->content[slot]);
}

static inline void fetch_content(const State *st, int64_t v, int64_t ppn, int is_write) {
    int64_t slot = st->vms[v].base_slot + ppn, word = st->content[slot];
    int byte = st->page[slot];
    if ((word & UNIQUE) == 0) {
        FETCH(&st->indexed[word & INDEX]);
        if (is_write && (byte & STATE) == SHARED) FETCH(&st->shared_kind[word & INDEX]);
    }
    if ((byte & HINT) && (is_write ? (word & UNIQUE) == 0 : (word & STALE) != 0)) {
        int64_t home = home_of(st, v << PPN_BITS | ppn);
        FETCH(&st->stale[home]);
    }
}

static inline void fetch_hinting(const State *st, int64_t slot) {
    int64_t word = st->content[slot];
    if ((st->page[slot] & STATE) != RESIDENT || (word & UNIQUE) != 0) return;
    int64_t hint = hint_on(st, word & INDEX);
    if (hint >= 0) {
        int64_t ppn = hint & (((int64_t)1 << PPN_BITS) - 1);
        fetch_page(st, st->vms[hint >> PPN_BITS].base_slot + ppn);
    }
}

/* Scan: share.scan_vm. Returns how many pages were hashed. To scan a shared page, or one whose hint
   is good, changes nothing, and nearly all are such: a ring of draws is passed over without branches,
   a block of it at a time, whose pages were fetched a block before; what is left is listed, its
   frames and then its hints' pages are fetched, and only then it is looked at. */

static int64_t news_of(const State *st, const int64_t *slots, int64_t n, int64_t most,
                       int64_t *restrict news, int64_t *n_news) {
    int64_t done = 0, found = 0;
    for (int64_t i = 0; i < n; i++) {
        int64_t slot = slots[i];
        int byte = st->page[slot], now = byte & STATE;
        int is_shared = now == SHARED;
        int is_hashed = ((now == RESIDENT) | is_shared) & (done < most);
        int is_known = is_shared | (((byte & HINT) != 0) & ((st->content[slot] & STALE) == 0));
        news[found] = slot;
        found += is_hashed & !is_known;
        done += is_hashed;
    }
    *n_news = found;
    return done;
}

int64_t scan_vm(const Table *table, int64_t v, int64_t budget) {
    State state = state_of(table), *st = &state;
    const int64_t base = st->vms[v].base_slot, size = st->vms[v].size_slots;
    const int64_t most = DRAWS_PER_PAGE * budget;
    const uint64_t key = stream(st->host, SCAN, st->vms[v].vm);
    int64_t blocks[2][RING], news[RING], done = 0, drawn = 0;
    for (int64_t i = 0; i < RING; i++)
        fetch_page(st, blocks[0][i] = base + below(key, i, size));
    for (int now = 0; drawn < most && done < budget; now = !now) {
        for (int64_t i = 0; i < RING; i++)
            fetch_page(st, blocks[!now][i] = base + below(key, drawn + RING + i, size));
        int64_t n = min(RING, most - drawn), n_news;
        int64_t hashed = news_of(st, blocks[now], n, budget - done, news, &n_news);
        drawn += n;
        done += hashed;
        st->host->scanned += hashed;
        for (int64_t i = 0; i < n_news; i++) fetch_content(st, v, news[i] - base, 0);
        for (int64_t i = 0; i < n_news; i++) fetch_hinting(st, news[i]);
        for (int64_t i = 0; i < n_news; i++) {
            int64_t ppn = news[i] - base;
            if ((st->page[news[i]] & STATE) != RESIDENT) continue; /* drawn twice, and shared since */
            st->host->stale_hints += drop_hint(st, v, ppn);
            st->host->shares_made += match(st, v, ppn, 1);
        }
    }
    return done;
}

#include "paging.h"
#include "guests.h"
