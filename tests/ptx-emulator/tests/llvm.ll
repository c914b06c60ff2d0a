target triple = "nvptx64-nvidia-cuda"
@sm = internal addrspace(3) global [64 x float] undef, align 4
@dyn = external addrspace(3) global [0 x i8], align 16
@tab = internal addrspace(4) constant [4 x i32] [i32 1, i32 2, i32 3, i32 4], align 4
@gt = internal addrspace(1) constant [4 x i32] [i32 1, i32 2, i32 3, i32 4], align 4
declare i32 @llvm.nvvm.read.ptx.sreg.tid.x()
declare void @llvm.nvvm.barrier0()
declare float @llvm.fma.f32(float,float,float)
declare float @llvm.exp2.f32(float)
declare float @llvm.maxnum.f32(float,float)
declare float @llvm.sqrt.f32(float)
declare i32 @llvm.ctpop.i32(i32)
declare i32 @llvm.fshl.i32(i32,i32,i32)
declare i8 @llvm.abs.i8(i8, i1)
declare i32 @llvm.smax.i32(i32,i32)
declare float @llvm.floor.f32(float)
define internal float @helper(float %a, <4 x float> %v) noinline { 
 %x = extractelement <4 x float> %v, i32 2
 %r = fdiv float %a, %x
 ret float %r }
define void @k(ptr addrspace(1) %p, i32 %n, ptr byval([128 x i8]) align 64 %tm, half %h, bfloat %bf, i64 %l, ptr %gen) {
 %t = call i32 @llvm.nvvm.read.ptx.sreg.tid.x()
 %c = icmp slt i32 %t, %n
 br i1 %c, label %a, label %b
a:
 %q = getelementptr float, ptr addrspace(1) %p, i32 %t
 %v = load float, ptr addrspace(1) %q
 %qv = getelementptr <4 x float>, ptr addrspace(1) %p, i32 %t
 %vv = load <4 x float>, ptr addrspace(1) %qv
 %s = getelementptr [64 x float], ptr addrspace(3) @sm, i32 0, i32 %t
 store float %v, ptr addrspace(3) %s
 call void @llvm.nvvm.barrier0()
 %r = call float @helper(float %v, <4 x float> %vv)
 %m = call float @llvm.maxnum.f32(float %r, float 1.0)
 %sq = call float @llvm.sqrt.f32(float %m)
 %fl = call float @llvm.floor.f32(float %sq)
 store float %fl, ptr addrspace(1) %q
 %tc = getelementptr i32, ptr addrspace(4) @tab, i32 %t
 %ti = load i32, ptr addrspace(4) %tc
 %rot = call i32 @llvm.fshl.i32(i32 %ti, i32 %n, i32 %t)
 %g2 = getelementptr i32, ptr addrspace(1) @gt, i32 %t
 %gi = load i32, ptr addrspace(1) %g2
 %sum = add i32 %rot, %gi
 %old = atomicrmw add ptr addrspace(1) %p, i32 %sum seq_cst
 %hf = fpext half %h to float
 %bff = fpext bfloat %bf to float
 %ss = fadd float %hf, %bff
 %bfo = fptrunc float %ss to bfloat
 store bfloat %bfo, ptr addrspace(1) %p
 %bx = load i8, ptr %tm
 store i8 %bx, ptr %gen
 %d = udiv i64 %l, 10
 store i64 %d, ptr %gen
 %i1 = icmp eq i64 %d, 3
 %sel = select i1 %i1, i32 %ti, i32 %gi
 store i32 %sel, ptr %gen
 %dd = load i16, ptr addrspace(3) @dyn
 store i16 %dd, ptr %gen
 %al = alloca [4 x i32]
 %ap = getelementptr i32, ptr %al, i32 %t
 store i32 %sum, ptr %ap
 %a2 = load i32, ptr %al
 store i32 %a2, ptr %gen
 switch i32 %t, label %b [ i32 0, label %x0
  i32 1, label %x1
  i32 2, label %x2
  i32 3, label %x3
  i32 4, label %x4 ]
x0:
 call void asm sideeffect "{ .reg .pred p; LAB_WAIT: mbarrier.try_wait.parity.shared::cta.b64 p, [$0], $1; @p bra DONE; bra LAB_WAIT; DONE: }", "r,r"(i32 %n, i32 %t)
 br label %b
x1:
 store i32 11, ptr %gen
 br label %b
x2:
 store i32 17, ptr %gen
 br label %b
x3:
 store i32 9, ptr %gen
 br label %b
x4:
 store i8 7, ptr %gen
 br label %b
b:
 ret void
}
!nvvm.annotations = !{!0,!1}
!0 = !{ptr @k, !"kernel", i32 1}
!1 = !{ptr @k, !"maxntidx", i32 256}
