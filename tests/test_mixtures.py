"""Mixtures of operators that are each proved alone elsewhere: every prunable group, cut at random, is exact."""

from __future__ import annotations

import pytest
from oracle import model, prunable, prune_and_compare

MIXTURES = {
    "softmax over one of two factors": (
        """(float[N,4] x) => (float[N,3] y) <float[4,24] w, float[24,3] v, int64[3] t={0,4,6}, int64[2] t2={0,24}> {
        h = MatMul(x,w)
        r = Reshape(h,t)
        s = Softmax<axis=-1>(r)
        f = Reshape(s,t2)
        y = MatMul(f,v)}""",
        {"w:1": 4},
    ),
    "concat and split with a residual of other parts": (
        """(float[N,4] x) => (float[N,3] y) <float[4,6] a, float[4,10] b, float[6,3] v, float[10,3] u,
        int64[2] p={10,6}> {
        h = MatMul(x,a)
        k = MatMul(x,b)
        j = Concat<axis=-1>(h,k)
        q, r = Split<axis=-1>(j,p)
        q1 = Add(q,k)
        r1 = Mul(r,h)
        y0 = MatMul(q1,u)
        y1 = MatMul(r1,v)
        y = Add(y0,y1)}""",
        {"a:1": 2},
    ),
    "attention with packed heads": (
        """(float[N,T,8] x) => (float[N,T,8] y) <float[8,24] w, float[8,8] o, int64[5] t={0,0,3,4,2},
        int64[3] t2={0,0,-1}, int64[1] z={0}, float[8,8] pre> {
        q3 = MatMul(x,w)
        r = Reshape(q3,t)
        p = Transpose<perm=[2,0,3,1,4]>(r)
        q0, k0, v0 = Split<axis=0>(p)
        q = Squeeze(q0,z)
        k = Squeeze(k0,z)
        v = Squeeze(v0,z)
        kt = Transpose<perm=[0,1,3,2]>(k)
        s = MatMul(q,kt)
        a = Softmax<axis=-1>(s)
        c = MatMul(a,v)
        ct = Transpose<perm=[0,2,1,3]>(c)
        f = Reshape(ct,t2)
        y = MatMul(f,o)}""",
        {"w:1": 4, "w:1#2": 2},
    ),
    "channel shuffle before groups that straddle it": (
        """(float[N,3,6,6] x) => (float[N,5,6,6] y) <float[12,3,1,1] w, float[8,6,3,3] d, float[5,8,1,1] v,
        int64[5] apart = {0,3,4,6,6}, int64[4] together = {0,12,6,6}> {
        h = Conv(x, w)
        a = Reshape(h, apart)
        b = Transpose<perm=[0,2,1,3,4]>(a)
        c = Reshape(b, together)
        k = Conv<group=2, pads=[1,1,1,1]>(c, d)
        y = Conv(k, v)
        }""",
        {"w:0": 3, "w:0#2": 2, "w:0#3": 2, "d:0": 4},
    ),
    "expand and tile": (
        """(float[N,4] x) => (float[N,3] y) <float[4,6] w, float[18,3] v, int64[3] e={1,3,6}, int64[1] one={1},
        int64[2] f={0,18}, int64[2] rep={1,3}> {
        h = MatMul(x,w)
        u = Unsqueeze(h,one)
        ex = Expand(u,e)
        fl = Reshape(ex,f)
        t = Tile(h,rep)
        s = Add(fl,t)
        y = MatMul(s,v)}""",
        {"w:1": 6},
    ),
    "gather with negative indices": (
        """(float[N,4] x) => (float[N,3] y) <float[4,8] w, float[4,3] v, float[3,3] u, int64[4] i={-4,-3,-2,-1},
        int64[3] j={1,-6,3}> {
        h = MatMul(x,w)
        a = Gather<axis=-1>(h,i)
        b = Gather<axis=1>(h,j)
        c = MatMul(a,v)
        d = MatMul(b,u)
        y = Add(c,d)}""",
        {"w:1": 4, "w:1#2": 3},
    ),
    "where with masks that broadcast": (
        """(float[N,4] x) => (float[N,3] y) <float[4,8] w, float[4,8] m, float[1,8] z, float[8] f, float[8,3] v,
        float zero={0}> {
        h = MatMul(x,w)
        g = MatMul(x,m)
        c = Greater(z, zero)
        a = Where(c, h, f)
        d = Greater(g, zero)
        b = Where(d, a, zero)
        y = MatMul(b,v)}""",
        {"w:1": 8},
    ),
    "slices with a stride": (
        """(float[N,4] x) => (float[N,3] y) <float[4,12] w, float[6,3] v, float[6,3] u, int64[1] ax={-1},
        int64[1] z={0}, int64[1] o={1}, int64[1] e={99}, int64[1] st={2}> {
        h = MatMul(x,w)
        a = Slice(h,z,e,ax,st)
        b = Slice(h,o,e,ax,st)
        s = Sigmoid(a)
        p = Mul(s,b)
        y = MatMul(p,v)}""",
        {"w:1": 6},
    ),
    "depth to space and back": (
        """(float[N,3,6,6] x) => (float[N,2,6,6] y) <float[16,3,1,1] w, float[16] b, float[2,16,1,1] v> {
        h = Conv(x,w,b)
        d = DepthToSpace<blocksize=2, mode="DCR">(h)
        p = SpaceToDepth<blocksize=2>(d)
        q = Add(p,h)
        y = Conv(q,v)}""",
        {"w:0#3": 4},
    ),
    "padded channels in a residual": (
        """(float[N,3,6,6] x) => (float[N,2,6,6] y) <float[6,3,1,1] w, float[10,3,1,1] w2, float[2,10,1,1] v,
        int64[8] p={0,1,0,0,0,3,0,0}, float one={1.5}> {
        h = Conv(x,w)
        d = Pad(h,p,one)
        k = Conv(x,w2)
        q = Add(d,k)
        r = Relu(q)
        y = Conv(r,v)}""",
        {"w:0": 6},
    ),
    "loop that carries and captures": (
        """(float[N,4] x) => (float[N,3] y) <float[4,8] w, float[8,3] v, float[8,8] u, int64 n={3}, int64[1] ax={0},
        bool c={1}> {
        h = MatMul(x,w)
        z = Relu(h)
        r, all = Loop (n, c, z) <
        body = b (int64 i, bool ci, float[N,8] s) => (bool co, float[N,8] so, float[N,8] sc) {
        co = Identity(ci)
        m = MatMul(s,u)
        q = Add(m,h)
        so = Tanh(q)
        sc = Sigmoid(m)
        }
        >
        w0 = ReduceSum<keepdims=0>(all, ax)
        k = Add(r, w0)
        y = MatMul(k,v)}""",
        {"w:1": 8},
    ),
    "loop that swaps halves": (
        """(float[N,4] x) => (float[N,3] y) <float[4,8] w, float[8,3] v, int64 n={3}, bool c={1}> {
        h = MatMul(x,w)
        z = Relu(h)
        r = Loop (n, c, z) <
        body = b (int64 i, bool ci, float[N,8] s) => (bool co, float[N,8] so) {
        co = Identity(ci)
        a, d = Split<axis=-1>(s)
        so = Concat<axis=-1>(d,a)
        }
        >
        k = Add(r, h)
        y = MatMul(k,v)}""",
        {"w:1": 4},
    ),
    "layer norm over two axes": (
        """(float[N,4] x) => (float[N,3] y) <float[4,24] w, float[4,6] sc, float[4,6] b, float[24,3] v,
        int64[3] t={0,4,6}, int64[2] t2={0,24}> {
        h = MatMul(x,w)
        r = Reshape(h,t)
        s,mean,inv = LayerNormalization<axis=-2>(r,sc,b)
        c = Sub(s,mean)
        f = Reshape(c,t2)
        g = Add(f,h)
        y = MatMul(g,v)}""",
        {"w:1": 4, "w:1#2": 6},
    ),
    "one tensor twice in a product": (
        """(float[N,4] x) => (float[N,3] y) <float[4,8] w, float[8,8,3] d> {
        h = MatMul(x,w)
        y = Einsum<equation="ni,nj,ijo->no">(h,h,d)}""",
        {"w:1": 8},
    ),
    "gram matrix": (
        """(float[N,3,5,5] x) => (float[N,3] y) <float[6,3,1,1] w, float[36,3] d, int64[2] t={0,36},
        int64[3] s={0,6,25}> {
        h = Conv(x,w)
        r = Reshape(h,s)
        rt = Transpose<perm=[0,2,1]>(r)
        g = MatMul(r,rt)
        f = Reshape(g,t)
        y = MatMul(f,d)}""",
        {"w:0": 6},
    ),
    "shared slopes before a grouped transposed conv": (
        """(float[N,4,5,5] x) => (float[N,2,10,10] y) <float[8,4,1,1] w, float[8,3,2,2] k, float[6] kb,
        float[8,1,1] sl, float[8,4,1,1] w2, float[2,6,1,1] v> {
        h = Conv(x,w)
        g = Conv(x,w2)
        p = PRelu(h,sl)
        q = PRelu(g,sl)
        s = Mul(p,q)
        t = ConvTranspose<group=2, strides=[2,2]>(s,k,kb)
        r = Relu(t)
        y = Conv(r,v)}""",
        {"w:0": 2, "w:0#2": 4, "k:1": 3},
    ),
    "mean of channels taken off": (
        """(float[N,4,5,5] x) => (float[N,2,5,5] y) <float[8,4,1,1] w, float[2,8,1,1] v, int64[1] one={1}> {
        h = Conv(x,w)
        r = Relu(h)
        m = ReduceMean<axes=[-3], keepdims=0>(r)
        u = Unsqueeze(m, one)
        d = Sub(r,u)
        y = Conv(d,v)}""",
        {"w:0": 8},
    ),
    "gemm with factors and a turned operand": (
        """(float[4,N] x) => (float[N,3] y) <float[4,8] w, float[1,8] b, float[3,8] v, float[3] c> {
        h = Gemm<transA=1, alpha=0.5, beta=2.0>(x,w,b)
        r = Sigmoid(h)
        y = Gemm<transB=1, alpha=1.5, beta=0.5>(r,v,c)}""",
        {"w:1": 8},
    ),
    "linear attention": (
        """(float[N,T,4] x) => (float[N,T,3] y) <float[4,8] q, float[4,8] k, float[4,8] v, float[8,3] o> {
        a = MatMul(x,q)
        b = MatMul(x,k)
        c = MatMul(x,v)
        bt = Transpose<perm=[0,2,1]>(b)
        kv = MatMul(bt,c)
        z = MatMul(a,kv)
        y = MatMul(z,o)}""",
        {"q:1": 8, "v:1": 8},
    ),
    "a weight computed from the input": (
        """(float[1,4] x) => (float[1,3] y) <float[4,6] a, float[6,40] hw, float[4,5] c, float[8,3] v,
        int64[2] t={5,8}> {
        z0 = MatMul(x,a)
        z = Relu(z0)
        f0 = MatMul(z,hw)
        f = Reshape(f0,t)
        u = MatMul(x,c)
        h = MatMul(u,f)
        r = Tanh(h)
        y = MatMul(r,v)}""",
        {"a:1": 6, "hw:1": 5, "hw:1#2": 8},
    ),
    "a tensor twice end to end": (
        """(float[N,4] x) => (float[N,3] y) <float[4,8] a, float[4,16] w, float[16,3] v, int64[2] rep={1,2},
        int64[1] z={3}, int64[1] o={1}, int64[1] s={11}, float[8,3] u> {
        h = MatMul(x,a)
        c = Concat<axis=1>(h,h)
        t = Tile(h,rep)
        g = MatMul(x,w)
        m = Mul(c,t)
        n = Add(m,g)
        y0 = MatMul(n,v)
        sl = Slice(n,z,s,o)
        y1 = MatMul(sl,u)
        y = Add(y0,y1)}""",
        {"a:1": 3, "a:1#2": 5},
    ),
    "nearest entry of a codebook": (
        """(float[N,4] x) => (float[N,3] y) <float[4,8] a, float[5,8] c, int64[1] one={1}, int64[1] two={2},
        float[8,3] v> {
        h = MatMul(x,a)
        u = Unsqueeze(h,one)
        d = Sub(u,c)
        s = Mul(d,d)
        t = ReduceSum<keepdims=0>(s, two)
        i = ArgMin<axis=1, keepdims=0>(t)
        e = Gather(c,i)
        y = MatMul(e,v)}""",
        {"a:1": 8},
    ),
    "windows and back": (
        """(float[N,3,4,4] x) => (float[N,2,4,4] y) <float[6,3,1,1] w, float[6,6] m, float[2,6,1,1] v,
        int64[6] t={0,6,2,2,2,2}, int64[3] u={-1,4,6}, int64[6] b={-1,2,2,2,2,6}, int64[4] bb={-1,4,4,6}> {
        h = Conv(x,w)
        r = Reshape(h,t)
        p = Transpose<perm=[0,2,4,3,5,1]>(r)
        q = Reshape(p,u)
        k = MatMul(q,m)
        r2 = Reshape(k,b)
        p2 = Transpose<perm=[0,1,3,2,4,5]>(r2)
        q2 = Reshape(p2,bb)
        n = Transpose<perm=[0,3,1,2]>(q2)
        s = Add(n,h)
        y = Conv(s,v)}""",
        {"w:0": 6},
    ),
    "outer product by broadcasting": (
        """(float[N,4] x) => (float[N,3] y) <float[4,6] w, float[4,5] u, float[30,3] v, int64[1] one={1},
        int64[1] two={2}, int64[2] t={-1,30}> {
        h = MatMul(x,w)
        k = MatMul(x,u)
        hh = Unsqueeze(h,two)
        kk = Unsqueeze(k,one)
        p = Mul(hh,kk)
        f = Reshape(p,t)
        y = MatMul(f,v)}""",
        {"w:1": 6, "u:1": 5},
    ),
    "selective kernels": (
        """(float[N,3,4,4] x) => (float[N,2,4,4] y) <float[8,3,1,1] w1, float[8,3,3,3] w2, float[4,8,1,1] f,
        float[16,4,1,1] g, float[2,8,1,1] v, int64[5] t={0,2,8,1,1}, int64[1] one={1}> {
        a = Conv(x,w1)
        b = Conv<pads=[1,1,1,1]>(x,w2)
        s = Add(a,b)
        p = GlobalAveragePool(s)
        z0 = Conv(p,f)
        z = Relu(z0)
        e = Conv(z,g)
        r = Reshape(e,t)
        q = Softmax<axis=1>(r)
        au = Unsqueeze(a,one)
        bu = Unsqueeze(b,one)
        st = Concat<axis=1>(au,bu)
        m = Mul(st,q)
        o = ReduceSum<keepdims=0>(m,one)
        y = Conv(o,v)}""",
        {"w1:0": 8, "f:0": 4, "g:0": 2},
    ),
}


@pytest.mark.parametrize("factors", [False, True])
@pytest.mark.parametrize("name", MIXTURES)
def test_mixture(name: str, factors: bool) -> None:
    text, expected = MIXTURES[name]
    m = model(text)
    assert prunable(m) == expected
    for seed, ratio in enumerate((0.5, 0.25, 0.99)):
        prune_and_compare(m, ratio=ratio, seed=seed, factors=factors, high=2)
