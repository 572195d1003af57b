%%% Code that is loaded anew, deleted and purged while pools work: in a VM of its own, which lives
%%% through it or does not.
-module(reload_SUITE).

-include_lib("stdlib/include/assert.hrl").

-export([all/0, suite/0]).
-export([
    the_modules_in_erlang_are_loaded_anew_under_load/1,
    the_native_module_is_not_loaded_a_second_time/1,
    what_a_pool_has_begun_outlives_the_purge_of_its_native_module/1,
    a_listener_outlives_a_module_that_was_loaded_and_purged_again/1,
    a_purged_native_module_is_loaded_again/1,
    the_state_of_a_server_survives_a_change_of_code/1
]).
-export([listen/1, wait_for_connection/0, stop_listening/0]).

-define(POOL, macula_gateway_mesh).
-define(NIF, macula_gateway_mesh_nif).

suite() -> [{timetrap, {minutes, 2}}].

all() ->
    [
        the_modules_in_erlang_are_loaded_anew_under_load,
        the_native_module_is_not_loaded_a_second_time,
        what_a_pool_has_begun_outlives_the_purge_of_its_native_module,
        a_listener_outlives_a_module_that_was_loaded_and_purged_again,
        a_purged_native_module_is_loaded_again,
        the_state_of_a_server_survives_a_change_of_code
    ].

the_modules_in_erlang_are_loaded_anew_under_load(_Config) ->
    %% How a fix of a few lines reaches a node that must not stop. Twice, so that the first version
    %% is purged: processes that still run it would be killed.
    with_pool(fun(Vm, Peer) ->
        {ok, Stream} = connect(Vm, Peer, 1),
        Server = rpc(Vm, erlang, whereis, [?POOL]),
        ok = mesh_vm:call(Vm, start_load, [[{mesh_peer:node_id(1), mesh_peer:address(Peer)}], 4]),
        Modules = [?POOL, macula_quic, macula_gateway_mesh_tls],
        lists:foreach(
            fun(Module) ->
                ?assertEqual({module, Module}, reload(Vm, Module)),
                more_arrives(Peer)
            end,
            Modules ++ Modules
        ),
        ?assertEqual({ok, Stream}, connect(Vm, Peer, 1)),
        ?assertEqual(Server, rpc(Vm, erlang, whereis, [?POOL])),
        ok = mesh_vm:call(Vm, stop_load, [])
    end).

the_native_module_is_not_loaded_a_second_time(_Config) ->
    %% Two versions of the library would have a runtime each, and handles that the other does not
    %% know. The refusal is told, and the present version goes on.
    with_pool(fun(Vm, Peer) ->
        {ok, Stream} = connect(Vm, Peer, 1),
        ok = mesh_vm:call(Vm, start_load, [[{mesh_peer:node_id(1), mesh_peer:address(Peer)}], 4]),
        lists:foreach(
            fun(_) ->
                ?assertEqual({error, on_load_failure}, rpc(Vm, code, load_file, [?NIF])),
                ?assertEqual(false, rpc(Vm, code, purge, [?NIF])),
                more_arrives(Peer)
            end,
            lists:seq(1, 20)
        ),
        ?assertEqual({ok, Stream}, connect(Vm, Peer, 1)),
        ok = mesh_vm:call(Vm, stop_load, [])
    end).

what_a_pool_has_begun_outlives_the_purge_of_its_native_module(_Config) ->
    %% The runtime's tasks do not know that the module has gone. One that is just dialling makes a
    %% connection and a stream, resources whose types the VM frees with the module: it crashed.
    %% The peer stands still until then, so that every dial is under way.
    Options = #{linger_ms => 100, connect_timeout_ms => 60_000},
    with_pool(Options, fun(Vm, Peer) ->
        ok = mesh_peer:pause(Peer),
        lists:foreach(
            fun(N) ->
                ok = send_async(Vm, Peer, N, mesh_peer:frame(N, 8))
            end,
            lists:seq(0, 19)
        ),
        true = rpc(Vm, code, delete, [?NIF]),
        _ = rpc(Vm, code, purge, [?NIF]),
        churn(Vm),
        ok = mesh_peer:resume(Peer),
        ?assertMatch(#{distinct := 20}, mesh_peer:wait(Peer, messages, 20))
    end).

a_listener_outlives_a_module_that_was_loaded_and_purged_again(Config) ->
    %% The types of the second load have no objects yet, but those whom the listener lets in become
    %% some: the VM freed the types with the module, and was left with whatever lay there then.
    Files = quic_certs:self_signed(filename:join(proplists:get_value(priv_dir, Config), "server")),
    mesh_vm:with(fun(Vm) ->
        {Address, Port} = rpc(Vm, ?MODULE, listen, [Files]),
        lists:foreach(
            fun(_) ->
                ?assertEqual({module, ?NIF}, rpc(Vm, code, ensure_loaded, [?NIF])),
                true = rpc(Vm, code, delete, [?NIF]),
                _ = rpc(Vm, code, purge, [?NIF]),
                churn(Vm)
            end,
            [first, second, third]
        ),
        {ok, Connection} = macula_quic:connect(Address, Port, [], 10_000),
        ?assertMatch({quic, new_conn, _, _}, rpc(Vm, ?MODULE, wait_for_connection, [])),
        %% What is to be done when its owner dies is known by its type.
        true = rpc(Vm, ?MODULE, stop_listening, []),
        receive
            {quic, shutdown, Connection, 0} -> ok
        after 10_000 -> error(never_closed)
        end,
        ?assertEqual({module, ?NIF}, rpc(Vm, code, ensure_loaded, [?NIF]))
    end).

%% In the other VM: listens, and asks for one connection, in a process that stays.
listen({CertFile, KeyFile}) ->
    Caller = self(),
    _ = spawn(fun() ->
        true = register(?MODULE, self()),
        Options = [{certfile, CertFile}, {keyfile, KeyFile}],
        {ok, Listener} = macula_quic:listen({{127, 0, 0, 1}, 0}, Options),
        {ok, Listener} = macula_quic:async_accept(Listener, []),
        {ok, Address} = macula_quic:sockname(Listener),
        Caller ! {?MODULE, Address},
        NewConnection =
            receive
                {quic, new_conn, _, _} = Message -> Message
            end,
        receive
            {asked, From} -> From ! {?MODULE, NewConnection}
        end,
        receive
            never -> Listener
        end
    end),
    answer().

%% In the other VM: what that process was told.
wait_for_connection() ->
    ?MODULE ! {asked, self()},
    answer().

stop_listening() ->
    exit(whereis(?MODULE), kill).

answer() ->
    receive
        {?MODULE, Answer} -> Answer
    end.

a_purged_native_module_is_loaded_again(_Config) ->
    %% What a release does that takes an application out and in again, its pool stopped. Who sends
    %% meanwhile is not hurt; handles from before are of no use.
    with_pool(fun(Vm, Peer) ->
        lists:foreach(
            fun(Round) ->
                {ok, Stream} = connect(Vm, Peer, 1),
                ok = mesh_vm:call(Vm, stop_pool, []),
                true = rpc(Vm, code, delete, [?NIF]),
                _ = rpc(Vm, code, purge, [?NIF]),
                ?assertEqual({module, ?NIF}, rpc(Vm, code, ensure_loaded, [?NIF])),
                ?assertError(badarg, rpc(Vm, macula_quic, send, [Stream, <<"from before">>])),
                ?assertEqual(ok, send_async(Vm, Peer, 1, <<"to nobody">>)),
                ok = mesh_vm:call(Vm, start_pool, [#{linger_ms => 100}]),
                ok = send_async(Vm, Peer, 1, mesh_peer:frame(Round, 8)),
                ?assertMatch(#{distinct := Round}, mesh_peer:wait(Peer, distinct, Round))
            end,
            lists:seq(1, 5)
        )
    end).

the_state_of_a_server_survives_a_change_of_code(_Config) ->
    %% release_handler suspends the server, loads its module, changes the code, and resumes.
    with_pool(fun(Vm, Peer) ->
        {ok, Stream} = connect(Vm, Peer, 1),
        Server = rpc(Vm, erlang, whereis, [?POOL]),
        ok = rpc(Vm, sys, suspend, [Server]),
        ?assertEqual({module, ?POOL}, reload(Vm, ?POOL)),
        ok = rpc(Vm, sys, change_code, [Server, ?POOL, "0.1.0", []]),
        ok = rpc(Vm, sys, resume, [Server]),
        ?assertEqual({ok, Stream}, connect(Vm, Peer, 1)),
        {ok, Other} = connect(Vm, Peer, 2),
        ?assertEqual(ok, rpc(Vm, macula_quic, send, [Other, mesh_peer:frame(0, 8)])),
        ?assertMatch(#{distinct := 1}, mesh_peer:wait(Peer, messages, 1))
    end).

%%% Internal

%% Another VM, a pool under a supervisor in it, and a peer.
with_pool(Test) -> with_pool(#{linger_ms => 100}, Test).

with_pool(Options, Test) ->
    Peer = mesh_peer:start(),
    mesh_vm:with(fun(Vm) ->
        ok = mesh_vm:call(Vm, start_pool, [Options]),
        Test(Vm, Peer)
    end),
    mesh_peer:stop(Peer).

rpc(Vm, Module, Function, Arguments) ->
    peer:call(Vm, Module, Function, Arguments, 30_000).

connect(Vm, Peer, N) ->
    Call = [?POOL, mesh_peer:node_id(N), mesh_peer:address(Peer)],
    mesh_vm:call(Vm, get_or_create_connection, Call).

send_async(Vm, Peer, N, Message) ->
    Call = [?POOL, mesh_peer:node_id(N), mesh_peer:address(Peer), Message],
    mesh_vm:call(Vm, send_async, Call).

%% Fills the holes in the VM's memory, so that what is used after it was freed is noticed.
churn(Vm) ->
    _ = rpc(Vm, mesh_vm, churn, []),
    ok.

%% Loads the module's file once more; who runs the version before the present one is killed, so
%% there must be nobody.
reload(Vm, Module) ->
    true = rpc(Vm, code, soft_purge, [Module]),
    rpc(Vm, code, load_file, [Module]).

%% The load goes on: twice as much has come.
more_arrives(Peer) ->
    #{messages := Messages} = mesh_peer:stats(Peer),
    _ = mesh_peer:wait(Peer, messages, Messages + 100),
    ok.
