import sys, time, json, torch
from sparse_attn.models import LanguageModel
from sparse_attn.nn import SparseSelfAttention
from sparse_attn.patterns import parse
from sparse_attn.training import *
gpu=torch.cuda.is_available(); dev="cuda" if gpu else "cpu"; ac=torch.bfloat16 if gpu else None
seconds=float(sys.argv[1]); out=sys.argv[2]; steps=int(sys.argv[3]); T=int(sys.argv[4]); B=int(sys.argv[5])
voc,fil=(8192,255) if gpu else (512,31)
t0=time.monotonic()
runs={}
for name,(d,L,H,mlp,lr) in {"d256 L6 1e-3":(256,6,4,512,1e-3),"d256 L6 3e-3":(256,6,4,512,3e-3),"d256 L6 5e-4":(256,6,4,512,5e-4),"d256 L6 nomlp 2e-3":(256,6,4,0,2e-3)}.items():
    if not gpu: d,mlp,L=64,mlp//4,2
    torch.manual_seed(0)
    m=LanguageModel(voc,d,[SparseSelfAttention(d,H,parse("full()"),rope_theta=None) for _ in range(L)],kernel=4,mlp=mlp).to(dev)
    tasks=[(FactChains(T,h,16//h,16,filler=fil,vocabulary=voc),B) for h in (1,2,4)]
    runs[name]=Trainer(m,tasks,Recipe(steps,lr,warmup=min(200,steps//5),autocast=ac),seed=0)
g=torch.Generator(dev).manual_seed(5)
tests={f"h{h} T{t} q{q}":FactChains(t,h,16//h,q,filler=fil,vocabulary=voc).draw(256 if gpu else 16,g) for h in (1,2,4) for t,q in ((T,16),(T,1),(8*T,1))}
for i in range(steps):
    for r in runs.values(): r.step()
    if i in (10,50) or i%max(1,steps//12)==0 or i==steps-1:
        print(i,f"{time.monotonic()-t0:.1f}s"," ".join(f"{r.recent_loss():.3f}" for r in runs.values()),flush=True)
        if time.monotonic()-t0>seconds: break
for n,r in runs.items():
    res={k:round(accuracy(r.model,b,examples=32,autocast=ac),3) for k,b in tests.items()}
    print(n,r.done,res,flush=True)
    open(out,"a").write(json.dumps({"run":n,"done":r.done,"T":T,**res,"losses":[round(x,3) for x in r.losses[:r.done].view(-1).tolist()[::25]]})+"\n")
