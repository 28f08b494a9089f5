import klimb
import pytest
@pytest.mark.parametrize("env,rule,kw",[("CartPole-v1",klimb.TRPO(),{}),("CartPole-v1",klimb.PPO(),dict(num_seeds=2)),("gymnasium:Pendulum-v1",klimb.TRPO(),dict(num_envs=2)),("Pendulum-v1",klimb.Reinforce(),{}),("gymnasium:CartPole-v1",klimb.PPO(target_kl=0.01),dict(num_seeds=2,num_envs=4))])
def test_x(env,rule,kw,tmp_path):
    r=klimb.train(env,rule,env_steps=4000,run_dir=tmp_path/"r",**kw)
    assert r.history[-1]["status"] in ("ACCEPTED",["ACCEPTED"]*2)
    klimb.evaluate(r.policy,env,episodes=3)
